// Places a subgraph blueprint as a person would, by searching for it, connects it, runs it and uses the layer map on its
// face. Reads its orders as JSON from the first argument {playwright, browser, url, pictures, blueprint, map, widgets,
// changed, workflow} and prints, by renderer, what it saw; screenshots go to `pictures`. The workflow has every other
// node; links name the blueprint's slots; `map` says whether a layer map is to be looked for, `changed` are values of
// the blueprint's widgets that another selection follows from.
import { inEachRenderer, runLoaded, settled } from '../../devtools/page.mjs'
import { free } from './stay.mjs'

const WAIT = { timeout: 30_000 }
const orders = JSON.parse(process.argv[2])
const mapsAre = each => ({ maps, shown }) => maps.length === each && shown === each
const one = mapsAre(orders.map ? 1 : 0), two = mapsAre(orders.map ? 2 : 0)
const wrongly = ({ maps }) => maps[0]?.includes('nonsense')
const unlike = before => ({ maps }) => maps.length && maps[0] !== before.maps[0]
const like = before => ({ maps }) => maps[0] === before.maps[0]

await inEachRenderer(orders, async (page, renderer, seen) => {
  await free(orders.url)
  const id = crypto.randomUUID() // as a saved workflow has: results are kept by it
  await page.evaluate(workflow => window.app.loadGraphData(workflow), { ...orders.workflow, id })
  await place(page)
  Object.assign(seen, await page.evaluate(connect, orders))
  seen.prompt = await promptOf(page)
  seen.end = await runLoaded(page)
  seen.placed = await look(page, one)
  await page.screenshot({ path: `${orders.pictures}/${orders.blueprint}_${renderer}.png` })
  if (orders.map) await use(page, seen)
  seen.inside = await goTo(page, true)
  seen.outside = await goTo(page, false)
  seen.reloaded = await reload(page)
  await page.screenshot({ path: `${orders.pictures}/${orders.blueprint}_${renderer}_reloaded.png` })
  if (orders.map) await fail(page, seen)
  seen.pasted = await paste(page)
  seen.left = await leave(page)
})

// Opens the search, types the blueprint's name and clicks it among what is found. In newer front ends it then hangs from
// the pointer by its title until a click; after Enter it would hang from where the canvas last saw the pointer, and that
// click could fall on one of its text fields, which takes it. A busy machine misses a click or a move: then again.
async function place(page) {
  const isThere = () => page.evaluate(() => window.app.graph._nodes.some(node => node.subgraph))
  for (let tries = 0; tries < 3 && !(await isThere()); tries++) await search(page)
  await page.waitForFunction(() => window.app.graph._nodes.some(node => node.subgraph), null, WAIT)
  const hangs = () => page.evaluate(() => window.app.graph._nodes.some(node => node.flags.ghost))
  for (let tries = 0; tries < 5 && (tries === 0 || (await hangs())); tries++) {
    await page.mouse.move(860, 460)
    await page.mouse.move(900, 500, { steps: 4 })
    await page.waitForTimeout(300) // until the node is where the pointer is
    await page.mouse.click(900, 500)
    await page.waitForTimeout(300)
  }
  await page.waitForFunction(() => window.app.graph._nodes.every(node => !node.flags.ghost), null, WAIT)
}

async function search(page) {
  await page.evaluate(() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle'))
  const field = page.locator('.comfy-vue-node-search-container input, [role="dialog"] input').first()
  await field.fill(orders.blueprint)
  await page.getByRole('option').filter({ hasText: orders.blueprint }).first().click()
  await field.waitFor({ state: 'hidden' }) // while it fades it takes the next click
  await page.waitForFunction(() => window.app.graph._nodes.some(node => node.subgraph), null, { timeout: 10_000 }).catch(() => {})
  await settled(page)
}

// Connects the blueprint's slots by name and sets its widgets; what it offers of both.
function connect({ links, widgets }) {
  const { graph } = window.app
  const holder = graph._nodes.find(node => node.subgraph)
  const inputs = holder.inputs.map(each => each.name), outputs = holder.outputs.map(each => each.name)
  for (const { from, slot, to, name } of links) {
    const source = from === 'blueprint' ? holder : graph.getNodeById(from)
    const target = to === 'blueprint' ? holder : graph.getNodeById(to)
    source.connect(from === 'blueprint' ? outputs.indexOf(slot) : slot, target, target.inputs.findIndex(each => each.name === name))
  }
  const offered = Object.fromEntries(holder.widgets.map(widget => [widget.name, widget.value]))
  for (const widget of holder.widgets) if (widget.name in widgets) widget.value = widgets[widget.name]
  return { inputs, outputs, offered }
}

async function promptOf(page) {
  return page.evaluate(async () => (await window.app.graphToPrompt()).output)
}

// How many maps are on the screen, what those say that are drawn, how many steps undo has, and the blueprint's values, once
// that is as expected and the view, which glides to its place, stands still.
async function look(page, expected) {
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView'))
  const seen = await settled(page, () => page.evaluate(() => {
    const shown = [...document.querySelectorAll('.cb-map')].filter(each => each.checkVisibility())
    const maps = shown.filter(each => !('empty' in each.dataset))
    const holder = window.app.graph._nodes.find(node => node.subgraph)
    return {
      shown: shown.length,
      maps: maps.map(each => each.querySelector('.cb-map-line').textContent),
      values: Object.fromEntries((holder?.widgets ?? []).filter(each => each.serialize !== false).map(({ name, value }) => [name, value])),
      view: [window.app.canvas.ds.scale, ...window.app.canvas.ds.offset],
    }
  }), expected)
  return { ...seen, steps: await page.evaluate(() => {
    const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker
    tracker.checkState()
    return tracker.undoQueue.length
  }) }
}

// Turns a dial of the blueprint, pins a layer on its map, and takes that back.
async function use(page, seen) {
  await page.evaluate(values => {
    const holder = window.app.graph._nodes.find(node => node.subgraph)
    for (const widget of holder.widgets) if (widget.name in values) widget.value = values[widget.name]
  }, orders.changed)
  seen.turned = await look(page, unlike(seen.placed))
  seen.layer = await pin(page)
  seen.pinned = { ...await look(page, unlike(seen.turned)), prompt: await promptOf(page) }
  await page.evaluate(() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undo())
  seen.undone = { ...await look(page, like(seen.turned)), prompt: await promptOf(page) }
  await pin(page)
}

// Points at a cell of the map, clicks, and waits until the click has been written; the name of the layer.
async function pin(page) {
  const canvas = page.locator('.cb-map canvas:visible').first()
  const box = await canvas.boundingBox()
  let layer = ''
  for (let down = 0.2; !layer && down < 0.9; down += 0.05) {
    await page.mouse.move(box.x + box.width * 0.4, box.y + box.height * down)
    await page.waitForTimeout(100)
    const words = await page.locator('.cb-map-detail:visible').first().textContent()
    layer = words.includes(' · ') ? words.split(' · ')[0] : ''
  }
  await page.mouse.down()
  await page.mouse.up()
  await settled(page, () => page.locator('.cb-map-line').allTextContents())
  return layer
}

// Into the blueprint's subgraph or back out of it.
async function goTo(page, inside) {
  await page.evaluate(inside => {
    const { app } = window, root = app.rootGraph ?? app.graph
    const holder = root._nodes.find(node => node.subgraph)
    if (inside) app.canvas.openSubgraph(holder.subgraph, holder)
    else app.canvas.setGraph(root)
  }, inside)
  return look(page, one)
}

async function reload(page) {
  await page.evaluate(async () => {
    await window.app.loadGraphData(JSON.parse(JSON.stringify(window.app.graph.serialize())))
  })
  return { ...await look(page, one), prompt: await promptOf(page) }
}

// Runs with a layer that does not exist.
async function fail(page, seen) {
  await page.evaluate(() => {
    const { subgraph } = window.app.graph._nodes.find(node => node.subgraph)
    subgraph._nodes.flatMap(node => node.widgets ?? []).find(widget => widget.name === 'pin').value = 'nonsense'
  })
  seen.wrong = { ...await look(page, wrongly), end: (await runLoaded(page)).event }
  await page.keyboard.press('Escape') // out of the dialog of older front ends
  seen.failed = await look(page, wrongly)
}

// A copy of the blueprint, and what is on the screen once the first one is gone too.
async function paste(page) {
  await page.evaluate(() => {
    const { canvas, graph } = window.app
    const holder = graph._nodes.find(node => node.subgraph)
    canvas.selectItems([holder])
    canvas.copyToClipboard([holder])
    canvas.pasteFromClipboard({ position: [holder.pos[0] + 500, holder.pos[1]] })
  })
  const both = await look(page, two)
  await page.evaluate(() => window.app.graph.remove(window.app.graph._nodes.find(node => node.subgraph)))
  return { both: both.shown, copy: (await look(page, one)).shown }
}

// How many nodes inside the copy are looked at, and how many of them once another workflow has been loaded.
async function leave(page) {
  return page.evaluate(async workflow => {
    const inside = window.app.graph._nodes.flatMap(node => node.subgraph?._nodes ?? [])
    const here = await watched()
    await window.app.loadGraphData(workflow)
    await new Promise(resolve => setTimeout(resolve, 1000)) // a look comes ten times a second
    return { here, gone: await watched() }

    async function watched() {
      const seen = new Set()
      for (const node of inside) {
        const { graph } = node
        const get = () => (new Error().stack.includes('/watch.js') && seen.add(node), graph)
        Object.defineProperty(node, 'graph', { configurable: true, get })
      }
      await new Promise(resolve => setTimeout(resolve, 1500))
      for (const node of inside) {
        Object.defineProperty(node, 'graph', { configurable: true, writable: true, value: node.graph })
      }
      return seen.size
    }
  }, orders.workflow)
}
