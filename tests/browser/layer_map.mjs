// Uses the layer map as a person would, in both renderers. Reads its orders as JSON from the first argument
// {playwright, browser, url, profile, pictures} and prints, by renderer, what it saw; screenshots go to `pictures`.
import { inEachRenderer, runLoaded, settled } from '../../devtools/page.mjs'
import { free } from './stay.mjs'

const WAIT = { timeout: 60_000 }
const LAYER = 'o1.5'
const orders = JSON.parse(process.argv[2])

await inEachRenderer(orders, use)

async function use(page, name, seen) {
  await build(page)
  seen.first = await chosen(page)
  seen.changed = await changed(page, 'lambda', 0.2)
  seen.window = await changed(page, 'start_percent', 0.5)
  await page.screenshot({ path: `${orders.pictures}/${name}_dark.png` })
  await changed(page, 'start_percent', 0)
  seen.hover = await hover(page)
  seen.pinned = await press(page, () => page.mouse.down().then(() => page.mouse.up()))
  seen.excluded = await press(page, () => page.keyboard.press('x'))
  seen.freed = await press(page, () => page.keyboard.press('Delete'))
  seen.stillThere = await page.evaluate(() => window.app.graph._nodes.length)
  seen.kept = await press(page, () => page.keyboard.press('p'))
  seen.shown = await page.evaluate(() => [...document.querySelectorAll('input, textarea')].map(each => each.value))
  seen.end = await run(page)
  seen.summaries = await page.evaluate(() => [...document.querySelectorAll('.cb-summary, .cb-map-line')].map(e => e.textContent))
  seen.reloaded = await reload(page)
  seen.pasted = await paste(page)
  await page.evaluate(() => window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light'))
  await settled(page)
  await page.screenshot({ path: `${orders.pictures}/${name}_light.png` })
  await page.evaluate(() => window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark'))
  seen.subgraph = await inSubgraph(page)
}

// A loader, Select Layers and a preview of its picture, big enough to point at.
async function build(page) {
  await page.evaluate(() => {
    const { app } = window
    app.canvas.setGraph(app.rootGraph ?? app.graph) // the last visit may have ended inside a subgraph
    app.graph.clear()
  })
  await page.waitForTimeout(300) // Nodes 2.0 must see the old nodes go before new ones take their numbers
  await page.evaluate(profile => {
    const { app, LiteGraph } = window
    const add = (type, pos, size) => {
      const node = LiteGraph.createNode(type)
      Object.assign(node, { pos })
      app.graph.add(node)
      node.setSize([size[0], Math.max(size[1], node.size[1])])
      return node
    }
    const load = add('CBLoadSensitivityProfile', [20, 60], [420, 320])
    const select = add('CBSelectLayers', [470, 60], [480, 640])
    const picture = add('PreviewImage', [980, 60], [240, 240])
    const gate = add('CBLayerGate', [980, 360], [240, 160])
    load.widgets[0].value = profile
    load.connect(0, select, 0)
    select.connect(1, picture, 0)
    Object.assign(window, { select, load, gate })
    Object.assign(app.canvas.ds, { scale: 1, offset: [60, 60] })
    app.canvas.setDirty(true, true)
  }, orders.profile)
}

// Waits until the map of `window.select` shows a selection; its words, and the prompt's values for the node.
async function chosen(page, before = '') {
  await page.waitForFunction(before => {
    const line = window.select?.widgets.find(w => w.name === 'cb_layer_map')?.element.querySelector('.cb-map-line')
    return line?.textContent && line.textContent !== before && /layers/.test(line.textContent)
  }, before, WAIT)
  return settled(page, () => state(page)) // at first it may say what an earlier run said of a node of this number
}

async function state(page) {
  return page.evaluate(async () => {
    const element = window.select.widgets.find(w => w.name === 'cb_layer_map').element
    const prompt = (await window.app.graphToPrompt()).output
    return {
      words: element.querySelector('.cb-map-line').textContent,
      detail: element.querySelector('.cb-map-detail').textContent,
      inputs: Object.entries(prompt).find(([id]) => id.split(':').at(-1) === String(window.select.id))[1].inputs,
      maps: document.querySelectorAll('.cb-map canvas').length,
      size: [element.clientWidth, element.clientHeight],
    }
  })
}

// Sets a widget as its editor would, and waits for the map to say something new.
async function changed(page, name, value) {
  const before = (await state(page)).words
  await page.evaluate(([name, value]) => {
    const { app, select } = window, widget = select.widgets.find(w => w.name === name)
    widget.value = value
    widget.callback?.(value, app.canvas, select)
    app.canvas.setDirty(true, true)
  }, [name, value])
  return chosen(page, before)
}

// Points at the first selected layer's cell and reads what the map says of it.
async function hover(page) {
  const at = await page.evaluate(async layer => {
    const { layout } = await import('/extensions/conditional_balance/layer_map/draw.js')
    const { ask } = await import('/extensions/conditional_balance/server.js')
    const map = await ask('profile', { file: window.load.widgets[0].value })
    const canvas = window.select.widgets.find(w => w.name === 'cb_layer_map').element.querySelector('canvas')
    const plan = layout(map, canvas.clientWidth, canvas.clientHeight), box = canvas.getBoundingClientRect()
    const column = map.layers.indexOf(layer)
    const x = (plan.left[column] + plan.right[column]) / 2, y = plan.tops[0] + plan.row / 2
    return [box.left + (x / plan.width) * box.width, box.top + (y / plan.height) * box.height]
  }, LAYER)
  await page.mouse.move(...at)
  return (await settled(page, () => state(page), ({ detail }) => detail.startsWith(LAYER))).detail
}

// Does something by hand and waits until pin or exclude have changed.
async function press(page, act) {
  const texts = () => page.evaluate(() => ['pin', 'exclude'].map(name => window.select.widgets.find(w => w.name === name).value))
  const before = JSON.stringify(await texts())
  await act()
  await page.waitForFunction(before => JSON.stringify(['pin', 'exclude'].map(
    name => window.select.widgets.find(w => w.name === name).value)) !== before, before, WAIT)
  return settled(page, texts)
}

async function run(page) {
  // The other renderer ran the same prompt: without its results each node runs again and reports.
  await free(orders.url)
  await settled(page)
  const end = await runLoaded(page)
  await settled(page) // until the words beneath the nodes are there
  return end
}

async function findSelect(page) {
  await page.evaluate(() => { window.select = window.app.graph._nodes.findLast(n => n.comfyClass === 'CBSelectLayers') })
}

async function reload(page) {
  const saved = await page.evaluate(async () => {
    const saved = window.app.graph.serialize()
    await window.app.loadGraphData(JSON.parse(JSON.stringify(saved)))
    return saved.nodes.find(n => n.type === 'CBSelectLayers').widgets_values
  })
  await findSelect(page)
  return { saved, ...(await chosen(page)) }
}

// A second Select Layers by copy and paste, with a value of its own: both maps live.
async function paste(page) {
  await page.evaluate(() => {
    const { canvas } = window.app
    canvas.selectItems([window.select])
    canvas.copyToClipboard([window.select])
    canvas.pasteFromClipboard({ position: [20, 480], connectInputs: true })
  })
  await findSelect(page)
  await chosen(page)
  return changed(page, 'lambda', 0.6)
}

// The first Select Layers inside a subgraph, its profile coming through the border.
async function inSubgraph(page) {
  await page.evaluate(() => {
    const { app } = window
    const first = app.graph._nodes.find(n => n.comfyClass === 'CBSelectLayers')
    const { subgraph } = app.graph.convertToSubgraph(new Set([first]))
    window.select = subgraph._nodes.find(n => n.comfyClass === 'CBSelectLayers')
  })
  await page.waitForTimeout(300) // the node keeps its number: Nodes 2.0 must see it go before it comes again inside
  await page.evaluate(() => window.app.canvas.setGraph(window.select.graph))
  await chosen(page)
  const seen = await changed(page, 'lambda', 0.1)
  await page.screenshot({ path: `${orders.pictures}/subgraph.png` })
  await page.evaluate(() => window.app.canvas.setGraph(window.app.rootGraph ?? window.app.graph))
  await settled(page)
  const unasked = await page.evaluate(() => window.app.graph._nodes.find(n => n.subgraph).widgets.filter(w => w.name.endsWith('cb_layer_map')).length)
  return { ...seen, unasked }
}
