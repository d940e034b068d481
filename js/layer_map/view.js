// The layer map on a node: asks the server, draws the answers, and writes pins and exclusions into the node's widgets.
import { app } from '../../../scripts/app.js'
import { addStyle } from '../style.js'
import { loadWords } from '../words.js'
import { EXCLUDED, SELECTED, cellAt, draw, layout, short } from './draw.js'
import { isLinked, profileOf, rememberProfile, selectionValues, widgetOf } from './graph.js'
import { ask } from './server.js'

const NAME = 'cb_layer_map'
const LOOK_MILLISECONDS = 100
const EMPTY_HEIGHT = 40, TEXT_HEIGHT = 92, PANEL_HEIGHT = 100, TALLEST = 1200
const KEYS = { Enter: 'next', ' ': 'next', p: 'pin', x: 'exclude', Delete: 'free', Backspace: 'free' }
const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }

// Values change through many doors (typing, dragging, undo, links, primitives, subgraphs, two renderers) and no event
// tells of them all, so every map on screen looks at its few values ten times a second and asks only if they changed.
const views = new Set()
let clock = null

function watch(view) {
  views.add(view)
  clock ??= setInterval(() => document.hidden || views.forEach(each => each.look()), LOOK_MILLISECONDS)
}

function forget(view) {
  views.delete(view)
  if (views.size) return
  clearInterval(clock)
  clock = null
}

export class LayerMap {
  constructor(node, editable) {
    Object.assign(this, { node, editable, map: null, selection: null, cursor: null, plan: null, words: null })
    Object.assign(this, { lastRun: '', linked: [], error: null, clicks: Promise.resolve() })
    addStyle()
    this.build()
    this.addWidget()
    loadWords().then(words => {
      this.words = words
      if (!this.removed) watch(this)
    })
    const view = this, before = node.onRemoved
    node.onRemoved = function () {
      view.removed = true
      forget(view)
      return before?.apply(this, arguments)
    }
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
    // The canvas belongs to the map: a press on it must not drag the node.
    for (const name of ['pointerdown', 'mousedown', 'dblclick']) {
      this.canvas.addEventListener(name, event => event.button === 0 && event.stopPropagation())
    }
    new ResizeObserver(() => this.paintSoon()).observe(this.plot)
  }

  addWidget() {
    const options = {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => this.height(),
      getMaxHeight: () => (this.map ? TALLEST : EMPTY_HEIGHT),
    }
    const widget = this.node.addDOMWidget(NAME, NAME, this.element, options)
    widget.serialize = false // it is no input: neither the workflow nor the prompt keeps it
  }

  height() {
    return this.map ? TEXT_HEIGHT + PANEL_HEIGHT * this.map.features.length : EMPTY_HEIGHT
  }

  // After a run of the node: its summary, and the key of the profile that it had.
  executed(words, key) {
    if (words) this.lastRun = words
    if (key) rememberProfile(this.node, key)
    this.askedProfile = this.askedValues = undefined // a file of the same name may have changed
    this.tell()
  }

  // Asks for what has changed since the last look.
  look() {
    if (!this.element.isConnected || !this.words) return
    const source = profileOf(this.node), wanted = JSON.stringify(source)
    if (wanted !== this.askedProfile) {
      this.askedProfile = wanted
      this.askedValues = undefined
      this.loadProfile(source)
    }
    if (this.editable && this.map && !this.busy) this.lookAtValues(source)
    const ink = getComputedStyle(this.element).color
    if (ink !== this.seenInk) this.paintSoon()
  }

  lookAtValues(source) {
    const { values, linked } = selectionValues(this.node), wanted = JSON.stringify(values)
    if (wanted === this.askedValues) return
    if (this.askedValues !== undefined) this.lastRun = '' // it told of other values
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

  // Makes room for the map that has come or gone.
  show() {
    if (this.map) delete this.element.dataset.empty
    else this.element.dataset.empty = ''
    this.element.style.setProperty('--cb-map-height', `${this.height()}px`)
    if (this.map) this.writeLegend()
    this.tell()
    this.paintSoon()
    const { node } = this, least = node.computeSize()[1]
    if (node.size[1] < least) node.setSize([node.size[0], least])
    node.setDirtyCanvas?.(true, true)
  }

  tell() {
    if (!this.words) return
    const note = this.linked?.length ? ` ${this.words('linked', { names: this.linked.join(', ') })}` : ''
    const words = this.lastRun || this.selection?.summary || ''
    this.line.textContent = this.error ?? (this.map ? words + note : this.words(this.editable ? 'connect' : 'runOnce'))
    this.line.title = this.line.textContent
    this.line.classList.toggle('cb-map-error', Boolean(this.error))
    this.detail.textContent = this.cursor ? this.describe(this.cursor) : this.words(this.editable ? 'hint' : 'hintRead')
    this.detail.title = this.detail.textContent
    this.canvas.setAttribute('aria-label', this.words('label'))
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
    const fixed = ['pin', 'exclude'].filter(name => isLinked(this.node, name))
    if (fixed.length) throw new Error(this.words('linkedHand', { names: fixed.join(', ') }))
    const widgets = { pin: widgetOf(this.node, 'pin'), exclude: widgetOf(this.node, 'exclude') }
    const texts = { pin: widgets.pin.value, exclude: widgets.exclude.value }
    const answer = await ask('by_hand', { profile: profileOf(this.node), ...texts, layer: this.map.layers[layer], state })
    for (const [name, widget] of Object.entries(widgets)) {
      if (widget.value === answer[name]) continue
      widget.value = answer[name]
      widget.callback?.(answer[name], app.canvas, this.node)
    }
    this.node.graph?.change?.()
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.() // one step of undo
  }
}

function make(tag, className, text = '') {
  return Object.assign(document.createElement(tag), { className, textContent: text })
}

function mark(sign, colour, words) {
  const element = make('span', '', ` ${words}`)
  element.prepend(Object.assign(make('b', '', sign), { style: `color: ${colour}` }))
  return element
}

function clamp(value, count) {
  return Math.min(Math.max(value, 0), count - 1)
}
