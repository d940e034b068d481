// Runs a workflow and does what loses results: undo, another tab, a reload of the page, a run that fails or is refused.
// Reads its orders as JSON from the first argument {playwright, browser, url, prompt, broken, pictures} and prints, by
// renderer, what the nodes said; screenshots go to `pictures`.
import { inEachRenderer, runLoaded, settled } from '../../devtools/page.mjs'
import { afterReload, afterTabs, afterUndo, free, open } from './stay.mjs'

const orders = JSON.parse(process.argv[2])
const nodesIn = seen => Object.values(seen), failing = seen => nodesIn(seen).some(({ error }) => error)
const sound = seen => !failing(seen)

await inEachRenderer(orders, visit)

async function visit(page, name, seen) {
  await free(orders.url)
  await open(page, orders.prompt, `kept ${name}`)
  seen.empty = await said(page)
  const before = await record(page)
  seen.end = await runLoaded(page)
  seen.ran = await said(page, now => now['CBImageClusters 5'].words && nodesIn(now).every(({ map }) => map ?? true))
  const asRan = now => JSON.stringify(now) === JSON.stringify(seen.ran)
  const after = await record(page)
  Object.assign(seen, { steps: after.steps - before.steps, moved: before.boxes !== after.boxes, boxes: [before.boxes, after.boxes] })
  await page.screenshot({ path: `${orders.pictures}/${name}_ran.png` })
  await afterUndo(page)
  seen.undone = await said(page, asRan)
  await afterTabs(page, 'kept')
  seen.tabbed = await said(page, asRan)
  await afterReload(page)
  seen.reloaded = await said(page, asRan)
  await page.screenshot({ path: `${orders.pictures}/${name}_reloaded.png` })
  await change(page, '5', 'name', ' ')
  seen.failedEnd = await runLoaded(page)
  seen.failed = await said(page, failing)
  await closeDialogs(page)
  await page.screenshot({ path: `${orders.pictures}/${name}_failed.png` })
  await afterReload(page)
  seen.failedReloaded = await said(page, failing)
  await change(page, '5', 'name', 'b')
  seen.mendedEnd = await runLoaded(page)
  seen.mended = await said(page, sound)
  await change(page, '8', 'pin', 'o9.9.9')
  seen.refusedEnd = await runLoaded(page)
  seen.refused = await said(page, failing)
  await closeDialogs(page)
  await page.screenshot({ path: `${orders.pictures}/${name}_refused.png` })
}

// What stands beneath the nodes, by their type and number, once it is as expected; of a layer map also whether it is drawn.
async function said(page, expected) {
  return settled(page, () => page.evaluate(() => {
    Object.assign(window.app.canvas.ds, { scale: 0.3, offset: [100, 300] }) // Nodes 2.0 draws only what is seen
    window.app.canvas.setDirty(true, true)
    return Object.fromEntries(window.app.graph._nodes.filter(node => node.comfyClass?.startsWith('CB')).map(node => {
      const element = node.widgets?.find(widget => ['cb_summary', 'cb_layer_map'].includes(widget.name))?.element
      const line = element?.querySelector('.cb-map-line') ?? element
      return [`${node.comfyClass} ${node.id}`, {
        words: line?.textContent ?? null, seen: element?.isConnected ?? null, error: line?.classList.contains('cb-error') ?? null,
        map: element?.classList.contains('cb-map') ? !('empty' in element.dataset) : null,
      }]
    }))
  }), expected)
}

// How many steps undo could take back, and where everything is.
async function record(page) {
  return page.evaluate(() => {
    const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker
    tracker.checkState()
    const boxes = window.app.graph._nodes.map(node => [node.type, ...node.pos, ...node.size].join(' '))
    return { steps: tracker.undoQueue.length, boxes: JSON.stringify(boxes.sort()) }
  })
}

async function change(page, id, name, value) {
  await page.evaluate(([id, name, value]) => {
    const node = window.app.graph._nodes.find(each => String(each.id) === id)
    node.widgets.find(widget => widget.name === name).value = value
  }, [id, name, value])
}

async function closeDialogs(page) {
  for (const place of [1, 2]) {
    await page.waitForTimeout(300 * place)
    await page.keyboard.press('Escape')
  }
}
