// Pictures before and after on a node, one over the other, and one slider that says how much of each is seen.
import { api } from '../../scripts/api.js'
import { resultOf } from './results.js'
import { View, keepPresses, make } from './view.js'

const NAME = 'cb_compare'
const HEIGHT = 320

// A run's pictures of one side, one for each pair.
function paired(run, side) {
  const count = Math.max(run.before.length, run.after.length)
  return Array.from({ length: count }, (_, place) => run[side][place] ?? run[side][0])
}

export class Compare extends View {
  constructor(node) {
    super(node, NAME, HEIGHT)
  }

  build() {
    this.element = make('div', 'cb-compare')
    this.pairs = make('div', 'cb-compare-pairs')
    this.slider = Object.assign(make('input', ''), { type: 'range', min: 0, max: 100, step: 1, value: 50 })
    this.note = make('div', 'cb-compare-note')
    this.note.setAttribute('role', 'status')
    this.element.append(this.pairs, this.slider, this.note)
    this.slider.addEventListener('input', () => this.moveTo(this.slider.value))
    // The slider belongs to the node: a press must not drag the node, arrows must not reach the canvas.
    for (const name of ['pointerdown', 'pointermove', 'mousedown', 'dblclick', 'keydown']) {
      this.slider.addEventListener(name, event => event.stopPropagation())
    }
    this.moveTo(50)
  }

  // Draws what has changed since the last look.
  look() {
    const runs = resultOf(this.node).cb_compared ?? [] // several where the pictures came as a list
    const files = { before: runs.flatMap(run => paired(run, 'before')), after: runs.flatMap(run => paired(run, 'after')) }
    const wanted = JSON.stringify(files)
    if (!this.words || wanted === this.shown) return
    this.shown = wanted
    this.show(files)
  }

  show({ before, after }) {
    const count = before.length
    this.element.toggleAttribute('data-empty', !count)
    this.slider.setAttribute('aria-label', this.words('compareLabel'))
    this.slider.title = this.words('compareLabel')
    this.note.textContent = count ? '' : this.words('compareEmpty')
    this.pairs.style.setProperty('--cb-compare-columns', Math.max(Math.ceil(Math.sqrt(count)), 1))
    this.pairs.replaceChildren(...before.map((file, place) => this.pair(file, after[place])))
  }

  pair(before, after) {
    const pair = make('div', 'cb-compare-pair')
    pair.append(this.picture(before, 'before'), this.picture(after, 'after'), make('i', ''))
    for (const side of ['before', 'after']) pair.append(make('span', `cb-compare-${side}`, this.words(side)))
    const drag = event => {
      if (!(event.buttons & 1)) return
      event.stopPropagation()
      const box = pair.getBoundingClientRect()
      this.moveTo(Math.round((100 * (event.clientX - box.left)) / box.width))
    }
    pair.addEventListener('pointerdown', drag)
    pair.addEventListener('pointermove', drag)
    keepPresses(pair)
    return pair
  }

  picture(file, side) {
    const src = api.apiURL(`/view?${new URLSearchParams(file)}`)
    const picture = Object.assign(make('img', `cb-compare-${side}`), { alt: this.words(side), draggable: false, src })
    picture.addEventListener('error', () => { this.note.textContent = this.words('stripGone') })
    return picture
  }

  // Left of the place, in percent of the picture's width, is what was before.
  moveTo(place) {
    this.slider.value = place
    this.element.style.setProperty('--cb-compare-at', `${this.slider.value}%`)
  }
}
