// Uses the slider of Before and After as a person would, in both renderers. Reads its orders as JSON from the first
// argument {playwright, browser, url, prompt, pictures} and prints, by renderer, what it saw; screenshots go to `pictures`.
import { inEachRenderer, runLoaded, settled } from '../../devtools/page.mjs'
import { afterReload, afterUndo, heightOf, open } from './stay.mjs'

const orders = JSON.parse(process.argv[2])

await inEachRenderer(orders, use)

async function use(page, name, seen) {
  await open(page, orders.prompt, `compare ${name}`)
  seen.empty = await state(page, ({ note }) => note)
  seen.heights = [await heightOf(page, '.cb-compare')]
  await runLoaded(page)
  seen.ran = await state(page, ({ pairs }) => pairs.length && pairs.every(pair => pair.seen && pair.pixels.every(Boolean)))
  const asRan = ({ pairs }) => JSON.stringify(pairs) === JSON.stringify(seen.ran.pairs)
  seen.heights.push(await heightOf(page, '.cb-compare'))
  const before = await position(page)
  const pair = await (await element(page)).$('.cb-compare-pair'), box = await pair.boundingBox()
  await page.mouse.move(box.x + 0.6 * box.width, box.y + 0.5 * box.height)
  await page.mouse.down()
  await page.mouse.move(box.x + 0.25 * box.width, box.y + 0.5 * box.height, { steps: 4 })
  await page.mouse.up()
  seen.dragged = await state(page)
  await (await (await element(page)).$('input')).focus()
  await page.keyboard.press('ArrowRight')
  await page.keyboard.press('ArrowRight')
  seen.keyed = await state(page)
  seen.moved = before !== (await position(page))
  await picture(page, `${name}_dark`)
  await page.evaluate(() => window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light'))
  await picture(page, `${name}_light`)
  await page.evaluate(() => window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark'))
  await afterUndo(page)
  seen.undone = await state(page, asRan)
  await afterReload(page)
  seen.reloaded = await state(page, asRan)
}

async function element(page) {
  return page.evaluateHandle(() => window.app.graph._nodes.find(node => node.comfyClass === 'CBBeforeAfter')
    .widgets.find(widget => widget.name === 'cb_compare').element)
}

async function state(page, expected) {
  return settled(page, () => look(page), expected)
}

async function look(page) {
  await page.evaluate(() => {
    const { canvas, graph } = window.app, [left, top] = graph._nodes.find(node => node.comfyClass === 'CBBeforeAfter').pos
    Object.assign(canvas.ds, { scale: 1, offset: [300 - left, 200 - top] })
    canvas.setDirty(true, true)
  })
  await (await element(page)).evaluate(element => Promise.all([...element.querySelectorAll('img')].map(image => image.decode().catch(() => {}))))
  return (await element(page)).evaluate(element => ({
    note: element.querySelector('.cb-compare-note').textContent,
    pairs: [...element.querySelectorAll('.cb-compare-pair')].map(pair => ({
      alts: [...pair.querySelectorAll('img')].map(image => image.alt),
      pixels: [...pair.querySelectorAll('img')].map(image => image.naturalWidth),
      seen: pair.clientWidth > 40 && pair.clientHeight > 40,
    })),
    at: element.style.getPropertyValue('--cb-compare-at'),
  }))
}

async function position(page) {
  return page.evaluate(() => JSON.stringify([...window.app.graph._nodes.find(node => node.comfyClass === 'CBBeforeAfter').pos]))
}

async function picture(page, name) {
  await settled(page)
  await page.screenshot({ path: `${orders.pictures}/${name}.png` })
}
