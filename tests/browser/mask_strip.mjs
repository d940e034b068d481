// Uses the mask strip as a person would, in both renderers. Reads its orders as JSON from the first argument
// {playwright, browser, url, prompt, pictures} and prints, by renderer, what it saw; screenshots go to `pictures`.
import { inEachRenderer, runLoaded, settled } from '../../devtools/page.mjs'
import { heightOf } from './stay.mjs'

const WAIT = { timeout: 60_000 }
const orders = JSON.parse(process.argv[2])

await inEachRenderer(orders, use)

async function use(page, name, seen) {
  await load(page)
  seen.empty = await state(page)
  seen.heights = [await heightOf(page, '.cb-strip')]
  seen.end = await runLoaded(page)
  seen.first = await shown(page, 'overlay')
  await picture(page, `${name}_overlay_dark`)
  seen.heights.push(await heightOf(page, '.cb-strip'))
  seen.clicked = await press(page, 'mask', button => button.click())
  seen.keyed = await press(page, 'map', async button => {
    await button.focus()
    await page.keyboard.press('Enter')
  })
  await set(page, 'Comfy.ColorPalette', 'light')
  await picture(page, `${name}_map_light`)
  await set(page, 'Comfy.ColorPalette', 'dark')
  seen.reloaded = await reload(page)
  seen.pasted = await paste(page)
  await picture(page, `${name}_pasted_dark`)
  seen.subgraph = await inSubgraph(page, name)
  seen.gone = await withoutFiles(page)
}

async function set(page, setting, value) {
  await page.evaluate(([setting, value]) => window.app.extensionManager.setting.set(setting, value), [setting, value])
}

async function picture(page, name) {
  await settled(page) // until the palette and the canvas have settled
  await page.screenshot({ path: `${orders.pictures}/${name}.png` })
}

// Opens the workflow with the preview node, `window.preview`, in full view.
async function load(page) {
  await page.evaluate(async prompt => {
    const { app } = window
    app.canvas.setGraph(app.rootGraph ?? app.graph) // the last visit may have ended inside a subgraph
    app.graph.clear()
    await new Promise(resolve => setTimeout(resolve, 300)) // Nodes 2.0 must see the old nodes go
    await app.loadApiJson(prompt, 'strip')
    for (const widget of app.graph._nodes.flatMap(node => node.widgets ?? [])) {
      if (widget.name === 'control_after_generate') widget.value = 'fixed' // later runs need not sample again
    }
    const laidOut = JSON.parse(JSON.stringify(app.graph.serialize()))
    laidOut.id = crypto.randomUUID() // as a saved workflow has
    const apart = laidOut.nodes.find(node => node.type === 'CBAttributionPreview')
    Object.assign(apart, { pos: [3000, 0], size: [520, 80] })
    await app.loadGraphData(laidOut)
  }, orders.prompt)
  await find(page)
  await page.waitForTimeout(300) // Nodes 2.0 lays a workflow out more widely
  await page.evaluate(() => {
    const { canvas } = window.app, [left, top] = window.preview.pos
    Object.assign(canvas.ds, { scale: 1, offset: [200 - left, 200 - top] })
    canvas.setDirty(true, true)
  })
  await page.waitForFunction(() => window.preview.widgets[0].element.querySelector('.cb-strip-note').textContent, null, WAIT)
}

// The last preview node of the graph on screen becomes `window.preview`.
async function find(page) {
  await page.evaluate(() => {
    window.preview = window.app.canvas.graph._nodes.findLast(node => node.comfyClass === 'CBAttributionPreview')
  })
}

async function state(page, node = 'preview') {
  return page.evaluate(node => {
    const { element } = window[node].widgets.find(widget => widget.name === 'cb_mask_strip')
    const text = (tile, part) => tile.querySelector(part).textContent
    return {
      note: element.querySelector('.cb-strip-note').textContent,
      pressed: [...element.querySelectorAll('[aria-pressed=true]')].map(button => button.dataset.view),
      tiles: [...element.querySelectorAll('.cb-strip-tile')].map(tile => ({
        window: text(tile, 'strong'),
        words: text(tile, 'span'),
        pictures: [...tile.querySelectorAll('img')].map(image => ({
          alt: image.alt, pixels: image.naturalWidth, file: new URL(image.src).searchParams.get('filename'),
          wide: image.clientWidth, high: image.clientHeight,
        })),
      })),
      others: document.querySelectorAll('.comfy-img-preview img, .image-preview img').length, // core's own preview
      saved: window[node].serialize().properties.cb_strip_view ?? null,
    }
  }, node)
}

// Waits until the strip is on screen with all pictures of a view, and tells what it shows.
async function shown(page, view) {
  await page.waitForFunction(view => {
    const { element } = window.preview.widgets.find(widget => widget.name === 'cb_mask_strip')
    const images = [...element.querySelectorAll('img')]
    const pressed = element.querySelector('[aria-pressed=true]')?.dataset.view
    return element.isConnected && pressed === view && images.length && images.every(image => image.naturalWidth)
  }, view, WAIT)
  return state(page)
}

// Uses a button of the switch.
async function press(page, view, act) {
  const strip = await page.evaluateHandle(() => window.preview.widgets.find(widget => widget.name === 'cb_mask_strip').element)
  await act(await strip.$(`[data-view=${view}]`))
  return shown(page, view)
}

async function reload(page) {
  await page.evaluate(async () => {
    await window.app.loadGraphData(JSON.parse(JSON.stringify(window.app.graph.serialize())))
  })
  await find(page)
  return shown(page, 'map')
}

// A second strip by copy and paste: it has the view of the first and waits for a run of its own.
async function paste(page) {
  await page.evaluate(() => {
    const { canvas } = window.app
    window.first = window.preview
    canvas.selectItems([window.preview])
    canvas.copyToClipboard([window.preview])
    canvas.pasteFromClipboard({ position: [window.first.pos[0] + 560, window.first.pos[1]], connectInputs: true })
  })
  await find(page)
  return settled(page, async () => ({ copy: await state(page), first: await state(page, 'first') }), ({ copy }) => copy.note)
}

// The strip inside a subgraph: a run reaches it there.
async function inSubgraph(page, name) {
  await page.evaluate(() => {
    const { app } = window
    const { subgraph } = app.graph.convertToSubgraph(new Set([window.preview]))
    window.preview = subgraph._nodes.find(node => node.comfyClass === 'CBAttributionPreview')
  })
  await page.waitForTimeout(300) // the node keeps its number: Nodes 2.0 must see it go before it comes again inside
  await page.evaluate(() => window.app.canvas.setGraph(window.preview.graph))
  const end = await runLoaded(page)
  const found = await shown(page, 'map')
  await picture(page, `${name}_subgraph`)
  return { end, found }
}

// A workflow whose pictures the server has dropped, as after a restart.
async function withoutFiles(page) {
  await page.evaluate(() => {
    window.app.nodeOutputs = JSON.parse(JSON.stringify(window.app.nodeOutputs).replaceAll('.png', '.gone'))
  })
  await page.waitForFunction(() => window.preview.widgets.find(widget => widget.name === 'cb_mask_strip').element
    .querySelector('.cb-strip-note').textContent, null, WAIT)
  return state(page)
}
