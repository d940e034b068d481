// Does jobs by hand, from the default graph or an empty canvas to a picture: search, drag, type, choose, Run, and counts
// every step as one node, one link or one value. Reads its orders as JSON from the first argument {playwright, browser, url,
// pictures, jobs: [{name, steps, empty, quick, dials}]} and prints, by job, how many steps of which kind it took and how the
// run ended; screenshots go to `pictures`. `quick` holds values that only make the run short, and `dials` goes on to a preset
// and the layer map of Style from Picture. A step is ['node', name to type, type], ['link', type, output, type, input],
// ['choose', type, widget, text], ['type', type, widget, text] or ['template', title]; where there are several nodes of a
// type, "type 2" is the second; a blueprint's type is its name.
import { runLoaded, settled, withPage } from '../../devtools/page.mjs'
import { free } from './stay.mjs'

const orders = JSON.parse(process.argv[2])
const SCALE = 0.62, LEFT = 120, TOP = 180
const PLACES = [[420, 640], [-30, 640], [900, 640], [1350, 640], [-30, 1050], [1350, 0]] // of new nodes, in units of the graph
const FEW = 2 // looks, where nothing of ours is waited for
const BELOW = 4 // the first of the places that templates leave free
const NODES = [
  ['CBLoadDemoModel', [26, 474], [315, 98], {}],
  ['CLIPTextEncode', [415, 186], [423, 165], { text: 'a fox in the forest' }],
  ['CLIPTextEncode', [413, 389], [425, 181], { text: 'text, watermark' }],
  ['EmptyLatentImage', [473, 609], [315, 106], { width: 96, height: 96 }],
  ['KSampler', [863, 186], [315, 262], { steps: 2, cfg: 3, seed: 5 }],
  ['VAEDecode', [1209, 188], [210, 46], {}],
  ['SaveImage', [1451, 189], [210, 270], {}],
]
const LINKS = [ // from, its output, to, its input
  [0, 0, 4, 'model'], [0, 1, 1, 'clip'], [0, 1, 2, 'clip'], [0, 2, 5, 'vae'], [1, 0, 4, 'positive'],
  [2, 0, 4, 'negative'], [3, 0, 4, 'latent_image'], [4, 0, 5, 'samples'], [5, 0, 6, 'images'],
]

await withPage(orders, async (page, complaints) => {
  const seen = { complaints }
  await page.setViewportSize({ width: 1700, height: 1300 })
  for (const { name, steps, empty, quick, dials } of orders.jobs) {
    const found = (seen[name] = { node: 0, link: 0, value: 0 })
    try {
      await free(orders.url)
      await begin(page, empty ? [[], []] : [NODES, LINKS])
      let made = 0
      for (const [kind, ...step] of steps) {
        await { node: add, link, choose, type, template }[kind](page, ...step, PLACES[made])
        if (kind === 'node') made += 1
        if (kind === 'template') made = BELOW
        found[{ choose: 'value', type: 'value', template: 'node' }[kind] ?? kind] += 1
      }
      await page.screenshot({ path: `${orders.pictures}/${name}_made.png` })
      if (quick) await hurry(page, quick)
      found.end = await runLoaded(page)
      await settled(page)
      if (dials) found.dials = await useDials(page)
    } catch (error) {
      found.problem = String(error.stack ?? error)
    }
    await page.screenshot({ path: `${orders.pictures}/${name}.png` })
  }
  return seen
})

// The graph that ComfyUI 0.3.75 opens with, wherever it is not what the front end opens. Its checkpoint is the demo
// model, and it is small: the machine of a test has no other.
async function begin(page, [nodes, links]) {
  await page.evaluate(async ([scale, left, top, nodes, links]) => {
    const { app, LiteGraph } = window
    await app.loadGraphData({ nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4, last_node_id: 0, last_link_id: 0 })
    const { graph, canvas } = app
    const made = nodes.map(([type, pos, size, values]) => {
      const node = LiteGraph.createNode(type)
      graph.add(node)
      Object.assign(node, { pos, size })
      for (const [name, value] of Object.entries(values)) node.widgets.find(widget => widget.name === name).value = value
      return node
    })
    for (const [from, slot, to, name] of links) made[from].connect(slot, made[to], made[to].inputs.findIndex(input => input.name === name))
    // The node of a type, or the second of it ("LoadImage 2").
    window.nodeCalled = name => {
      const [, kind, number] = /^(.+?)(?: (\d))?$/.exec(name)
      const found = app.graph._nodes.filter(node => node.type === kind || (node.subgraph && node.title === name)).sort((one, other) => one.id - other.id) // a click changes their order
      return found[Number(number ?? 1) - 1] // a name that ends in a number is no blueprint's
    }
    Object.assign(canvas.ds, { scale, offset: [left / scale, top / scale] })
    canvas.setDirty(true, true)
    app.extensionManager.setting.set('Comfy.LinkRelease.Action', 'no action')
  }, [SCALE, LEFT, TOP, nodes, links])
  await settled(page)
}

// Double-clicks where nothing is, types a name and takes the first that is found.
async function add(page, name, type, place) {
  const field = page.locator('.comfy-vue-node-search-container input, [role="dialog"] input').first()
  for (let tries = 0; tries < 5 && !(await field.isVisible()); tries++) { // a slow machine misses the first
    await page.mouse.dblclick(...(await onScreen(page, place)))
    await comes(field)
  }
  await field.fill(name)
  const found = page.getByRole('option')
  await comes(found.filter({ hasText: name }).first())
  await settled(page, () => found.allTextContents(), undefined, FEW)
  await page.keyboard.press('Enter')
  const added = ([type, ghost]) => {
    const node = window.app.graph._nodes.at(-1)
    return (node.type === type || node.subgraph) && (ghost || !node.flags.ghost)
  }
  await page.waitForFunction(added, [type, true], { timeout: 10_000 })
  // Newer front ends let the node hang by its middle from the pointer until a click.
  if (await page.evaluate(() => window.app.graph._nodes.at(-1).flags.ghost)) {
    const [x, y] = await onScreen(page, place)
    await page.mouse.move(x + 200, y + 40, { steps: 4 })
    await page.waitForTimeout(300)
    await page.mouse.click(x + 200, y + 40)
  }
  await page.waitForFunction(added, [type, false], { timeout: 10_000 })
  await page.evaluate(place => {
    window.app.graph._nodes.at(-1).pos = place
    window.app.canvas.deselectAll() // the toolbar of what is selected may cover another node's sockets
  }, place)
  await settled(page, undefined, undefined, FEW)
}

async function comes(locator) {
  await locator.waitFor({ timeout: 3000 }).catch(() => {})
}

async function link(page, from, output, to, input) {
  const ends = await page.evaluate(([from, output, to, input]) => {
    const source = window.nodeCalled(from), target = window.nodeCalled(to)
    const out = source.outputs.findIndex(each => each.name === output), into = target.inputs.findIndex(each => each.name === input)
    if (out < 0 || into < 0) throw new Error(`no ${output} or no ${input}: ${source.outputs.map(each => each.name)} ${target.inputs.map(each => each.name)}`)
    return [source.getConnectionPos(false, out), target.getConnectionPos(true, into)].map(place => [...place])
  }, [from, output, to, input])
  const [start, end] = [await onScreen(page, ends[0]), await onScreen(page, ends[1])]
  await page.mouse.move(...start)
  await page.mouse.down()
  await page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, { steps: 4 })
  await page.mouse.move(...end, { steps: 4 })
  await page.mouse.up()
  await page.waitForFunction(([from, output, to, input]) => {
    const target = window.nodeCalled(to), id = target.inputs.find(each => each.name === input).link
    const link = id == null ? null : target.graph.links.get?.(id) ?? target.graph.links[id]
    return link && String(link.origin_id) === String(window.nodeCalled(from).id)
  }, [from, output, to, input], { timeout: 10_000 })
}

// Opens a list on a node and takes an entry.
async function choose(page, type, name, text) {
  const place = await page.evaluate(([type, name]) => {
    const node = window.nodeCalled(type), widget = node.widgets.find(each => each.name === name)
    return [node.pos[0] + node.size[0] / 2, node.pos[1] + (widget.y ?? widget.last_y) + 10]
  }, [type, name])
  const entry = page.locator('.litecontextmenu .litemenu-entry', { hasText: text }).first()
  for (let tries = 0; tries < 5 && !(await entry.isVisible()); tries++) { // a slow machine misses the first
    await page.mouse.click(...(await onScreen(page, place)))
    await comes(entry)
  }
  await entry.click()
  await settled(page, undefined, undefined, FEW)
}

// What a preset, the slider and a click on the map do to one another.
async function useDials(page) {
  const seen = [await dials(page, '')]
  await choose(page, 'CBStyleFromPicture', 'preset', 'strong 0.75')
  seen.push(await dials(page, seen.at(-1).line))
  await page.evaluate(() => {
    const slider = window.nodeCalled('CBStyleFromPicture').widgets.find(widget => widget.name === 'lambda')
    slider.value = 0.3
    slider.callback?.(0.3)
  })
  seen.push(await dials(page, seen.at(-1).line))
  const map = await page.evaluateHandle(() => window.nodeCalled('CBStyleFromPicture').widgets
    .find(widget => widget.name === 'cb_layer_map').element.querySelector('canvas'))
  const box = await map.boundingBox()
  await page.mouse.click(box.x + 0.5 * box.width, box.y + 0.2 * box.height)
  seen.push(await dials(page, seen.at(-1).line))
  return seen
}

// Once the map says something else than before.
async function dials(page, before) {
  return settled(page, () => page.evaluate(() => {
    const node = window.nodeCalled('CBStyleFromPicture'), value = name => node.widgets.find(widget => widget.name === name).value
    const { element } = node.widgets.find(widget => widget.name === 'cb_layer_map')
    return { amount: value('lambda'), preset: value('preset'), pin: value('pin'), line: element.querySelector('.cb-map-line').textContent }
  }), ({ line }) => line !== before && /\d/.test(line))
}

async function type(page, kind, name, text) {
  const element = await page.evaluateHandle(([kind, name]) => {
    const { element } = window.nodeCalled(kind).widgets.find(each => each.name === name)
    return element.matches('textarea') ? element : element.querySelector('textarea')
  }, [kind, name])
  await element.click({ clickCount: 3 })
  await page.keyboard.press('ControlOrMeta+a')
  await page.keyboard.type(text)
  await page.keyboard.press('Escape')
}

async function onScreen(page, place) {
  return page.evaluate(([x, y]) => {
    const { canvas } = window.app, box = canvas.canvas.getBoundingClientRect(), { scale, offset } = canvas.ds
    return [box.left + (x + offset[0]) * scale, box.top + (y + offset[1]) * scale]
  }, place)
}

// Opens the template browser and takes one of ours.
async function template(page, title) {
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates'))
  await page.locator('[role=dialog]').getByText(orders.pack, { exact: true }).first().click()
  await page.locator('[role=dialog]').getByText(title, { exact: true }).first().click()
  await page.waitForFunction(() => window.app.graph._nodes.length > 2, null, { timeout: 30_000 })
  await settled(page)
}

async function hurry(page, [type, values]) {
  await page.evaluate(([type, values]) => {
    for (const widget of window.nodeCalled(type).widgets) if (widget.name in values) widget.value = values[widget.name]
  }, [type, values])
}
