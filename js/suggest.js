// Tiles on a node, one for each style amount that was tried, with a curve of what they gain and lose: a click on a tile
// gives its amount to the node whose style it is.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { linkInto, nodeAt, widgetOf } from './graph.js'
import { resultOf } from './results.js'
import { View, make, makeButton } from './view.js'

const NAME = 'cb_suggest'
const HEIGHT = 330
const CURVE_WIDTH = 300, CURVE_HEIGHT = 60, EDGE = 6
const SVG = 'http://www.w3.org/2000/svg'

export class Suggestions extends View {
  constructor(node) {
    super(node, NAME, HEIGHT)
  }

  build() {
    this.element = make('div', 'cb-suggest')
    this.tiles = make('div', 'cb-suggest-tiles')
    this.tiles.setAttribute('role', 'group')
    this.curve = make('div', 'cb-suggest-curve')
    this.best = makeButton('cb-suggest-best', () => this.take(this.result().suggested))
    this.note = make('div', 'cb-suggest-note')
    this.note.setAttribute('role', 'status')
    this.element.append(this.tiles, this.curve, this.best, this.note)
  }

  result() {
    return resultOf(this.node).cb_suggested?.[0]
  }

  // The node whose amount was tried, and its widget.
  dial() {
    const result = this.result(), node = result && nodeAt(result.dial)
    return { node, widget: node && widgetOf(node, result.widget), linked: node && linkInto(node, result.widget) != null }
  }

  // Draws what has changed since the last look.
  look() {
    if (!this.words) return
    const result = this.result(), { node, widget, linked } = this.dial()
    const wanted = JSON.stringify([result, widget?.value, linked, node?.title])
    if (wanted === this.shown) return
    this.shown = wanted
    this.show(result, widget, linked)
  }

  show(result, widget, linked) {
    this.element.toggleAttribute('data-empty', !result)
    this.note.textContent = this.noted(result, widget, linked)
    if (!result) return
    this.tiles.setAttribute('aria-label', this.words('suggestLabel'))
    this.tiles.replaceChildren(...result.amounts.map((amount, place) => this.tile(result, place, amount === widget?.value)))
    this.curve.replaceChildren(curveOf(result, widget?.value, this.words))
    this.best.textContent = this.words('suggestTake', { amount: result.suggested })
    this.best.setAttribute('aria-pressed', String(widget?.value === result.suggested))
    this.best.disabled = !widget || linked
  }

  noted(result, widget, linked) {
    if (!result) return this.words('suggestEmpty')
    if (!widget) return this.words('suggestGone')
    return linked ? this.words('suggestLinked') : ''
  }

  tile({ amounts, style, content, files }, place, taken) {
    const tile = makeButton('cb-suggest-tile', () => this.take(amounts[place]))
    const src = api.apiURL(`/view?${new URLSearchParams(files[place])}`)
    const name = amounts[place] ? String(amounts[place]) : this.words('suggestNone')
    const picture = Object.assign(make('img', ''), { alt: '', draggable: false, src })
    picture.addEventListener('error', () => { this.note.textContent = this.words('stripGone') })
    const numbers = this.words('suggestNumbers', { style: percent(style[place]), content: percent(content[place]) })
    const found = make('span', '')
    for (const [key, values] of Object.entries({ style, content })) found.append(make('b', `cb-suggest-${key}`, `${percent(values[place])} %`))
    tile.append(picture, make('strong', '', name), found)
    tile.title = `${this.words('suggestTake', { amount: amounts[place] })}: ${numbers}`
    tile.setAttribute('aria-pressed', String(taken))
    return tile
  }

  take(amount) {
    const { widget, linked, node } = this.dial()
    if (!widget || linked) return
    widget.value = amount
    widget.callback?.(amount, app.canvas, node)
    node.graph?.change?.()
    node.setDirtyCanvas?.(true, true)
    this.look()
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.() // one step of undo
  }
}

// Style rises and content falls with the amount; a line stands where the slider is, a dashed one at what is suggested.
function curveOf({ amounts, style, content, suggested }, taken, words) {
  const last = amounts.at(-1) || 1
  const across = amount => EDGE + (CURVE_WIDTH - 2 * EDGE) * Math.min(amount / last, 1)
  const down = value => CURVE_HEIGHT - EDGE - (CURVE_HEIGHT - 2 * EDGE) * Math.min(Math.max(value, 0), 1)
  const line = values => values.map((value, place) => `${across(amounts[place])},${down(value)}`).join(' ')
  const svg = draw('svg', { viewBox: `0 0 ${CURVE_WIDTH} ${CURVE_HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': words('suggestCurve') })
  svg.append(
    draw('polyline', { points: line(style), class: 'cb-suggest-style' }),
    draw('polyline', { points: line(content), class: 'cb-suggest-content' }),
    draw('line', { x1: across(suggested), x2: across(suggested), y1: EDGE, y2: CURVE_HEIGHT - EDGE, class: 'cb-suggest-at' }),
  )
  if (typeof taken === 'number') svg.append(draw('line', { x1: across(taken), x2: across(taken), y1: 0, y2: CURVE_HEIGHT, class: 'cb-suggest-taken' }))
  const legend = make('div', 'cb-suggest-legend')
  for (const key of ['style', 'content']) legend.append(make('span', `cb-suggest-${key}`, words(key === 'style' ? 'suggestStyle' : 'suggestContent')))
  const both = make('div', '')
  both.append(svg, legend)
  return both
}

function percent(value) {
  return Math.round(100 * value)
}

function draw(tag, values) {
  const element = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(values)) element.setAttribute(name, value)
  return element
}
