// Two lines beneath a node: what its last run says in plain words, what it warns of, or why it failed. The lines are
// always there, so that a run changes nothing that undo could take back.
import { errorOf, resultOf, warningOf } from './results.js'
import { addStyle } from './style.js'
import { addWidget } from './view.js'
import { watch } from './watch.js'

const NAME = 'cb_summary', HEIGHT = 34, MARGIN = 4, TALLEST = 120

export class Summary {
  constructor(node) {
    addStyle()
    this.node = node
    this.element = Object.assign(document.createElement('div'), { className: 'cb-summary' })
    this.element.setAttribute('role', 'status')
    addWidget(node, NAME, this.element, HEIGHT + 2 * MARGIN, { margin: MARGIN, getMaxHeight: () => TALLEST })
    watch(this, node)
  }

  look() {
    say(this.element, this.node)
  }
}

// The words of a node's run; where it ran for each of a list, those of the first, and of how many.
function ran(node) {
  const [words = '', ...others] = resultOf(node).cb_summary ?? []
  return others.length ? `${words} (1/${others.length + 1})` : words
}

// Writes into an element what is to be said of a node: its error or what else is wrong, else its warning and the words.
export function say(element, node, words = ran(node), wrong = '') {
  const error = errorOf(node) || wrong, warning = warningOf(node)
  const text = error || [warning, words].filter(Boolean).join(' ')
  element.classList.toggle('cb-error', Boolean(error))
  element.classList.toggle('cb-warning', Boolean(warning && !error))
  if (element.textContent !== text) element.textContent = element.title = text
}
