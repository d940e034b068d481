// The layer map on a node: asks the server, draws the answers, and writes pins and exclusions into the node's widgets.
import { app } from '../../../scripts/app.js'
import { widgetOf } from '../graph.js'
import { resultOf } from '../results.js'
import { ask } from '../server.js'
import { say } from '../summary.js'
import { View, keepPresses, make } from '../view.js'
import { EXCLUDED, SELECTED, cellAt, draw, layout, short } from './draw.js'
import { profileOf, selectionValues, sourceWidget } from './graph.js'

export const NAME = 'cb_layer_map'
const HEIGHT = 300
const KEYS = { Enter: 'next', ' ': 'next', p: 'pin', x: 'exclude', Delete: 'free', Backspace: 'free' }
const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }

const maps = new WeakMap() // by node, its own map

export class LayerMap extends View {
  // With `holder`, the map of a node inside a subgraph, shown on the subgraph's own node under a name of its own there.
  constructor(node, editable, holder = null) {
    const nothing = { map: null, selection: null, cursor: null, plan: null, error: null, seenResult: null }
    const name = holder ? `${node.id}: ${NAME}` : NAME
    super(node, name, HEIGHT, { holder, editable, linked: [], clicks: Promise.resolve(), ...nothing })
    if (holder) return
    maps.set(node, this)
    if (editable) renew(node)
  }

  // The map that a node has of itself.
  static of(node) {
    return maps.get(node)
  }

  build() {
    this.element = make('div', `cb-map${this.editable ? ' cb-map-editable' : ''}`)
    this.plot = make('div', 'cb-map-plot')
    this.canvas = make('canvas', '')
    this.line = make('div', 'cb-map-line')
    this.detail = make('div', 'cb-map-detail')
    this.legend = make('div', 'cb-map-legend')
    this.plot.append(this.canvas)
    this.element.append(this.plot, this.legend, this.line, this.detail)
    this.element.dataset.empty = ''
    this.line.setAttribute('role', 'status')
    this.detail.setAttribute('role', 'status')
    this.canvas.tabIndex = 0
    this.canvas.setAttribute('role', 'application')
    this.canvas.addEventListener('pointermove', event => this.point(event))
    this.canvas.addEventListener('pointerleave', () => this.moveTo(null))
    this.canvas.addEventListener('click', event => this.click(event))
    this.canvas.addEventListener('keydown', event => this.press(event))
    this.canvas.addEventListener('blur', () => this.moveTo(null))
    keepPresses(this.canvas)
    new ResizeObserver(() => this.paintSoon()).observe(this.plot)
  }

  // Asks for what has changed since the last look.
  look() {
    if (!this.element.isConnected || !this.words) return
    const result = JSON.stringify([resultOf(this.node).cb_summary, resultOf(this.node).cb_profile])
    if (result !== this.seenResult) {
      this.seenResult = result
      this.askedProfile = this.askedValues = undefined // a file of the same name may have changed
    }
    const source = profileOf(this.node, this.holder), wanted = JSON.stringify(source)
    if (wanted !== this.askedProfile) {
      this.askedProfile = wanted
      this.askedValues = undefined
      this.loadProfile(source)
    }
    if (this.editable && this.map && !this.busy) this.lookAtValues(source)
    const ink = getComputedStyle(this.element).color
    if (ink !== this.seenInk) this.paintSoon()
    this.tell()
  }

  lookAtValues(source) {
    const { values, linked } = selectionValues(this.node, this.holder), wanted = JSON.stringify(values)
    if (wanted === this.askedValues) return
    this.askedValues = wanted
    this.linked = linked
    this.loadSelection(source, values)
  }

  async loadProfile(source) {
    const asked = this.askedProfile
    this.map = this.selection = this.error = null
    try {
      const map = source && (await ask('profile', source))
      if (asked !== this.askedProfile) return
      this.map = map
    } catch (error) {
      if (asked !== this.askedProfile) return
      this.error = error.message
    }
    this.show()
  }

  async loadSelection(source, values) {
    const asked = this.askedProfile
    this.busy = true
    try {
      const selection = await ask('selection', { profile: source, values })
      if (asked !== this.askedProfile) return
      this.selection = selection
      this.error = null
    } catch (error) {
      if (asked !== this.askedProfile) return
      this.selection = null
      this.error = error.message
    } finally {
      this.busy = false
    }
    this.tell()
    this.paintSoon()
  }

  // Shows the map that has come, or none.
  show() {
    if (this.map) delete this.element.dataset.empty
    else this.element.dataset.empty = ''
    if (this.map) this.writeLegend()
    this.tell()
    this.paintSoon()
  }

  tell() {
    if (!this.words) return
    say(this.line, this.node, this.sentence(), this.error ?? '')
    write(this.detail, this.map && this.cursor ? this.describe(this.cursor) : this.words(this.editable ? 'hint' : 'hintRead'))
    this.canvas.setAttribute('aria-label', this.words('label'))
  }

  // What the values would select now; what the run said where a link brings values that only a run can tell.
  sentence() {
    if (!this.map) return this.words(this.node.comfyClass === 'CBSelectLayers' ? 'connect' : 'runOnce')
    const { cb_summary: [ran] = [''], cb_about: [about] = [''] } = resultOf(this.node)
    const now = [about, this.selection && inWords(this.selection.facts, this.words)].filter(Boolean).join(' ')
    if (!this.linked.length) return now || ran
    return `${ran || now} ${this.words('linked', { names: this.linked.join(', ') })}`
  }

  describe({ panel, level, layer }) {
    const { map, selection, words } = this
    const parts = [
      map.layers[layer],
      words('rank', { rank: map.ranks[panel][level][layer], count: map.layers.length }),
      words('score', { score: map.scores[panel][level][layer].toFixed(3) }),
      `${words(map.features[panel])}, σ ${short(map.sigmas[level])}`,
    ]
    if (selection) parts.push(words(this.fate({ panel, level, layer })))
    return parts.join(' · ')
  }

  fate({ panel, level, layer }) {
    if (this.selection.excluded[layer]) return 'excluded'
    if (this.selection.pinned[layer]) return 'pinned'
    return this.selection.weights[this.map.features[panel]][level][layer] > 0 ? 'selected' : 'notSelected'
  }

  writeLegend() {
    const scale = make('span', 'cb-map-scale')
    const stops = this.map.palette.filter((_, place) => place % 51 === 0)
    scale.style.background = `linear-gradient(90deg, ${stops.join(', ')})`
    this.legend.replaceChildren(scale, make('span', '', this.words('sensitive')))
    if (!this.editable) return
    const selected = make('span', '', this.words('selected'))
    selected.prepend(make('i', ''))
    this.legend.append(selected, mark('▼', SELECTED, this.words('pinned')), mark('✕', EXCLUDED, this.words('excluded')))
  }

  paintSoon() {
    if (this.painting) return
    this.painting = true
    requestAnimationFrame(() => {
      this.painting = false
      this.paint()
    })
  }

  paint() {
    const width = this.plot.clientWidth, height = this.plot.clientHeight
    if (!this.map || !this.words || width < 1 || height < 1) return
    const density = Math.min(window.devicePixelRatio || 1, 2) * 1.5 // sharp when zoomed in a little
    this.canvas.width = Math.round(width * density)
    this.canvas.height = Math.round(height * density)
    const context = this.canvas.getContext('2d')
    context.scale(density, density)
    this.seenInk = getComputedStyle(this.element).color
    this.plan = layout(this.map, width, height)
    const look = { ink: this.seenInk, titles: this.map.features.map(feature => this.words(feature)) }
    draw(context, this.plan, this.map, this.selection, this.cursor, look)
  }

  moveTo(cursor) {
    this.cursor = cursor
    this.tell()
    this.paintSoon()
  }

  point(event) {
    this.moveTo(this.cellUnder(event))
  }

  // The front end scales its canvas by CSS, so a point on screen is first brought to the plot's own pixels.
  cellUnder(event) {
    if (!this.plan) return null
    const box = this.canvas.getBoundingClientRect()
    const x = ((event.clientX - box.left) / box.width) * this.plan.width
    const y = ((event.clientY - box.top) / box.height) * this.plan.height
    return cellAt(this.plan, x, y)
  }

  click(event) {
    event.stopPropagation()
    this.canvas.focus({ preventScroll: true })
    const cell = this.cellUnder(event)
    this.moveTo(cell)
    if (cell) this.set(cell.layer, 'next')
  }

  press(event) {
    if (!this.map || event.ctrlKey || event.metaKey || event.altKey) return
    const { key } = event
    if (MOVES[key]) this.step(...MOVES[key])
    else if (key === 'Home' || key === 'End') this.step(0, key === 'Home' ? -Infinity : Infinity)
    else if (this.editable && this.cursor && KEYS[key]) this.set(this.cursor.layer, KEYS[key])
    else return
    event.preventDefault()
    event.stopPropagation() // Delete must not delete the node
  }

  // Moves the cursor by levels (on into the next panel) and layers.
  step(levels, layers) {
    const { map } = this, rows = map.sigmas.length
    const { panel, level, layer } = this.cursor ?? { panel: 0, level: 0, layer: layers > 0 ? -1 : 0 }
    const row = clamp(panel * rows + level + levels, rows * map.features.length)
    this.moveTo({ panel: Math.floor(row / rows), level: row % rows, layer: clamp(layer + layers, map.layers.length) })
  }

  // Pins, excludes or frees a layer, or turns it to the next of these; one after the other, so that two quick clicks both count.
  set(layer, state) {
    if (!this.editable || !this.map) return
    this.clicks = this.clicks.then(() => this.write(layer, state)).catch(error => {
      this.error = error.message
      this.tell()
    })
  }

  async write(layer, state) {
    const widgets = { pin: sourceWidget(this.node, 'pin', this.holder), exclude: sourceWidget(this.node, 'exclude', this.holder) }
    const fixed = Object.keys(widgets).filter(name => !widgets[name])
    if (fixed.length) throw new Error(this.words('linkedHand', { names: fixed.join(', ') }))
    const texts = { pin: widgets.pin.value, exclude: widgets.exclude.value }
    const profile = profileOf(this.node, this.holder)
    const answer = await ask('by_hand', { profile, ...texts, layer: this.map.layers[layer], state })
    for (const [name, widget] of Object.entries(widgets)) {
      if (widget.value === answer[name]) continue
      widget.value = answer[name]
      widget.callback?.(answer[name], app.canvas, this.node)
    }
    this.node.graph?.change?.()
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.() // one step of undo
  }
}

// In 0.1.0 lambda above 1 was a number of layers; a slider that ends at 1 would make it all of them.
function renew(node) {
  const before = node.onConfigure
  node.onConfigure = function () {
    const result = before?.apply(this, arguments)
    const share = widgetOf(this, 'lambda'), number = widgetOf(this, 'number_of_layers')
    if (share?.value > 1 && number) [number.value, share.value] = [Math.trunc(share.value), 1]
    return result
  }
}

// What a selection chooses, in the user's language; a run says the same in English.
function inWords({ some, of, mostly, each, always, start, end }, words) {
  const blocks = mostly.map(([part, numbers]) => `${words(part)} ${numbers}`).join(words('and'))
  return [
    mostly.length ? words('chosen', { some, of, blocks }) : words('closed', { of }),
    each && words('atOneLevel', { each, always }),
    start && words('inWindow', { start, end }),
  ].filter(Boolean).join(' ')
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = element.title = text
}

function mark(sign, colour, words) {
  const element = make('span', '', ` ${words}`)
  element.prepend(Object.assign(make('b', '', sign), { style: `color: ${colour}` }))
  return element
}

function clamp(value, count) {
  return Math.min(Math.max(value, 0), count - 1)
}
