// A list of amounts by name beside a slider: choosing a name moves the slider, moving the slider lets go of the name.
import { widgetOf } from './graph.js'

export function joinPresets(node) {
  const names = widgetOf(node, 'preset'), slider = widgetOf(node, 'lambda')
  if (!names || !slider) return
  after(names, () => {
    const amount = amountOf(names.value)
    if (amount !== null) slider.value = amount
  })
  after(slider, () => {
    if (amountOf(names.value) !== null && amountOf(names.value) !== slider.value) names.value = names.options.values[0]
  })
}

// The number that a name ends in: "balanced 0.43"; null for the name that leaves it to the slider.
function amountOf(name) {
  const number = /\d*\.?\d+$/.exec(name)
  return number ? Number(number[0]) : null
}

function after(widget, act) {
  const before = widget.callback
  widget.callback = function () {
    const result = before?.apply(this, arguments)
    act()
    return result
  }
}
