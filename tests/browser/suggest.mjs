// Runs Suggest Style Amount and takes amounts by clicking, in both renderers. Reads its orders as JSON from the first
// argument {playwright, browser, url, prompt, pictures} and prints, by renderer, what it saw; screenshots go to `pictures`.
import { inEachRenderer, runLoaded, settled } from '../../devtools/page.mjs'
import { afterReload, afterTabs, heightOf, open } from './stay.mjs'

const orders = JSON.parse(process.argv[2])
const complete = ({ names, shown }) => names.length && shown === names.length

await inEachRenderer(orders, use)

async function use(page, name, seen) {
  await open(page, orders.prompt, `suggest ${name}`)
  seen.empty = await state(page, ({ note }) => note)
  const before = await steps(page)
  seen.heights = [await heightOf(page, '.cb-suggest')]
  seen.end = await runLoaded(page)
  seen.ran = await state(page, complete)
  seen.heights.push(await heightOf(page, '.cb-suggest'))
  seen.steps = (await steps(page)) - before
  await page.screenshot({ path: `${orders.pictures}/${name}_ran.png` })
  await page.locator('.cb-suggest-tile').nth(2).click()
  seen.clicked = await state(page, complete)
  seen.clickedSteps = (await steps(page)) - before
  await page.keyboard.press('Tab')
  await page.locator('.cb-suggest-best').focus()
  await page.keyboard.press('Enter')
  seen.keyed = await state(page, complete)
  await page.screenshot({ path: `${orders.pictures}/${name}_taken.png` })
  await page.evaluate(() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undo())
  seen.undone = await state(page, complete)
  seen.againEnd = await runLoaded(page)
  seen.again = await state(page, complete)
  await afterTabs(page, 'suggest')
  seen.tabbed = await state(page, complete)
  await afterReload(page)
  seen.reloaded = await state(page, complete)
}

async function state(page, expected) {
  return settled(page, () => page.evaluate(async () => {
    const { canvas, graph } = window.app, node = graph._nodes.find(each => each.comfyClass === 'CBSuggestAmount')
    Object.assign(canvas.ds, { scale: 1, offset: [300 - node.pos[0], 150 - node.pos[1]] })
    canvas.setDirty(true, true)
    const dial = graph._nodes.find(each => each.comfyClass === 'CBStyleFromPicture')
    const value = name => dial.widgets.find(widget => widget.name === name).value
    const { element } = node.widgets.find(widget => widget.name === 'cb_suggest')
    const images = [...element.querySelectorAll('img')]
    await Promise.all(images.map(image => image.decode().catch(() => {})))
    return {
      note: element.querySelector('.cb-suggest-note').textContent,
      names: [...element.querySelectorAll('strong')].map(each => each.textContent),
      taken: [...element.querySelectorAll('.cb-suggest-tile[aria-pressed=true] strong')].map(each => each.textContent),
      best: element.querySelector('.cb-suggest-best').textContent,
      shown: images.filter(image => image.naturalWidth && image.clientHeight > 30).length,
      curves: element.querySelectorAll('polyline').length,
      words: node.widgets.find(widget => widget.name === 'cb_summary').element.textContent,
      amount: value('lambda'), preset: value('preset'),
    }
  }), expected)
}

async function steps(page) {
  return page.evaluate(() => {
    const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker
    tracker.checkState()
    return tracker.undoQueue.length
  })
}
