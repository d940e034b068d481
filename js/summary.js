// A line of plain words beneath a node, from its last run.
import { addStyle } from './style.js'

const NAME = 'cb_summary', LINE = 15, MARGIN = 6, CHARACTER = 6, MOST_LINES = 4

// Shows `words` beneath `node`; the first call adds the line, later ones replace its words.
export function showSummary(node, words) {
  const widget = node.widgets?.find(each => each.name === NAME) ?? addLine(node)
  widget.element.textContent = words
  widget.element.title = words
  node.setDirtyCanvas?.(true, true)
}

function addLine(node) {
  addStyle()
  const element = Object.assign(document.createElement('div'), { className: 'cb-summary' })
  element.setAttribute('role', 'status')
  const height = () => lines(element.textContent, node.size[0]) * LINE + 2 * MARGIN
  const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: height, getMaxHeight: height }
  const widget = node.addDOMWidget(NAME, NAME, element, options)
  widget.serialize = false // it is no input: neither the workflow nor the prompt keeps it
  return widget
}

function lines(words, width) {
  return Math.min(MOST_LINES, Math.ceil((words.length * CHARACTER) / Math.max(width - 30, 60)))
}
