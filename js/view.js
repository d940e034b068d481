// What the views on nodes have in common: an element in a widget of the node, which neither workflow nor prompt keeps.
import { addStyle } from './style.js'
import { unwatch, watch } from './watch.js'
import { loadWords } from './words.js'

const TALLEST = 4000

// Has `build()`, which makes `element`, and `look()`, which draws what has changed since the last look.
export class View {
  // `height` is the same before a run and after it, so that a run moves no node; `more` is known to build(). With
  // `more.holder` the view of a node inside a subgraph stands on the subgraph's own node, and goes with that.
  constructor(node, name, height, more = {}) {
    Object.assign(this, { node, holder: null, words: null, shown: null }, more)
    addStyle()
    this.build()
    this.widget = addWidget(this.holder ?? node, name, this.element, height)
    watch(this, this.holder ?? node)
    loadWords().then(words => {
      this.words = words
    })
  }

  // Takes the view off a node that stays.
  leave() {
    this.element.remove() // Nodes 2.0 does not see that a widget of a subgraph's node goes
    unwatch(this)
    const node = this.holder ?? this.node
    if (node.widgets.includes(this.widget)) node.removeWidget(this.widget)
  }
}

export function addWidget(node, name, element, height, more = {}) {
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => height, getMaxHeight: () => TALLEST, ...more }
  const widget = node.addDOMWidget(name, name, element, options)
  widget.serialize = false // it is no input: neither the workflow nor the prompt keeps it
  return widget
}

export function make(tag, className, text = '') {
  return Object.assign(document.createElement(tag), { className, textContent: text })
}

// A button of a view: Enter and Space must not reach the canvas.
export function makeButton(className, act) {
  const button = Object.assign(make('button', className), { type: 'button' })
  button.addEventListener('click', event => {
    event.stopPropagation()
    act()
  })
  keepPresses(button)
  button.addEventListener('keydown', event => ['Enter', ' '].includes(event.key) && event.stopPropagation())
  return button
}

// A press on a part of a view must not drag the node.
export function keepPresses(element) {
  for (const name of ['pointerdown', 'mousedown', 'dblclick']) {
    element.addEventListener(name, event => event.button === 0 && event.stopPropagation())
  }
}
