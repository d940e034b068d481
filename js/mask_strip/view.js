// The mask strip on a node: a tile for each window with its pictures, and a switch between map, mask and overlay.
import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { resultOf } from '../results.js'
import { View, make, makeButton } from '../view.js'

const NAME = 'cb_mask_strip'
const VIEW = 'cb_strip_view' // a property of the node, saved with the workflow
const VIEWS = ['map', 'mask', 'overlay'], FIRST_VIEW = 'overlay'
const HEIGHT = 280

export class MaskStrip extends View {
  constructor(node) {
    super(node, NAME, HEIGHT)
  }

  build() {
    this.element = make('div', 'cb-strip')
    this.bar = make('div', 'cb-strip-bar')
    this.bar.setAttribute('role', 'group')
    this.buttons = VIEWS.map(view => this.button(view))
    this.bar.append(...this.buttons)
    this.tiles = make('div', 'cb-strip-tiles')
    this.note = make('div', 'cb-strip-note')
    this.note.setAttribute('role', 'status')
    this.element.append(this.bar, this.tiles, this.note)
  }

  button(view) {
    const button = makeButton('', () => this.choose(view))
    button.dataset.view = view
    return button
  }

  windows() {
    return resultOf(this.node).cb_strip ?? []
  }

  view() {
    const chosen = this.node.properties[VIEW]
    return VIEWS.includes(chosen) ? chosen : FIRST_VIEW
  }

  // Draws what has changed since the last look.
  look() {
    const wanted = JSON.stringify([this.windows(), this.view()])
    if (!this.words || wanted === this.shown) return
    this.shown = wanted
    this.show()
  }

  choose(view) {
    this.node.properties[VIEW] = view
    this.look()
    this.node.graph?.change?.()
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.() // one step of undo
  }

  show() {
    const windows = this.windows(), view = this.view()
    this.element.toggleAttribute('data-empty', !windows.length)
    this.bar.setAttribute('aria-label', this.words('stripLabel'))
    for (const button of this.buttons) {
      button.textContent = this.words(button.dataset.view)
      button.setAttribute('aria-pressed', String(button.dataset.view === view))
    }
    this.note.textContent = windows.length ? '' : this.words('stripEmpty')
    this.tiles.replaceChildren(...windows.map(window => this.tile(window, view)))
  }

  tile({ window, words, ...pictures }, view) {
    const tile = make('figure', 'cb-strip-tile'), shown = make('div', 'cb-strip-pictures')
    const caption = make('figcaption', ''), files = pictures[view] ?? []
    shown.style.setProperty('--cb-strip-columns', columnsOf(files.length))
    shown.append(...files.map((file, place) => this.picture(file, `${window}, ${this.words(view)} ${place + 1}`)))
    caption.append(make('strong', '', window), make('span', '', words))
    caption.title = words
    tile.append(shown, caption)
    return tile
  }

  picture(file, alt) {
    const picture = Object.assign(make('img', ''), { alt, draggable: false, src: api.apiURL(`/view?${new URLSearchParams(file)}`) })
    picture.addEventListener('error', () => { this.note.textContent = this.words('stripGone') })
    return picture
  }
}

// The batch of one window is laid out in a square.
function columnsOf(count) {
  return Math.max(Math.ceil(Math.sqrt(count)), 1)
}
