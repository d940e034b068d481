// Runs a workflow whose sampler has something to say of another node, and does what loses words. Reads its orders as
// JSON from the first argument {playwright, browser, url, prompt, pictures} and prints, by renderer, what stood beneath
// that node; screenshots go to `pictures`.
import { inEachRenderer, runLoaded, settled } from '../../devtools/page.mjs'
import { afterReload, afterTabs, afterUndo, free, open } from './stay.mjs'

const orders = JSON.parse(process.argv[2])
const warned = ({ warning }) => warning, failed = ({ error }) => error, silent = said => !warned(said) && !failed(said)

await inEachRenderer(orders, visit)

async function visit(page, name, seen) {
  await free(orders.url)
  await open(page, orders.prompt, `told ${name}`)
  seen.end = await runLoaded(page)
  seen.ran = await said(page, warned)
  await page.screenshot({ path: `${orders.pictures}/${name}_ran.png` })
  await change(page, 'SaveLatent', 'filename_prefix', `told ${name}`)
  seen.cachedEnd = await runLoaded(page)
  seen.cached = await said(page, warned)
  await afterUndo(page)
  seen.undone = await said(page, warned)
  await afterTabs(page, 'told')
  seen.tabbed = await said(page, warned)
  await afterReload(page)
  seen.reloaded = await said(page, warned)
  await change(page, 'KSampler', 'denoise', 1)
  seen.mendedEnd = await runLoaded(page)
  seen.mended = await said(page, silent)
  await afterReload(page)
  seen.mendedReloaded = await said(page, silent)
  await change(page, 'CBGradSAMBlend', 'mode', 'paper')
  await change(page, 'KSampler', 'sampler_name', 'uni_pc')
  seen.failedEnd = await runLoaded(page)
  await page.keyboard.press('Escape')
  seen.failed = await said(page, failed)
  await page.screenshot({ path: `${orders.pictures}/${name}_failed.png` })
  await afterReload(page)
  seen.failedReloaded = await said(page, failed)
  await change(page, 'CBGradSAMBlend', 'mode', 'x0')
  await change(page, 'KSampler', 'denoise', 0.5)
  await change(page, 'KSampler', 'sampler_name', 'euler')
  await page.evaluate(() => {
    const { graph } = window.app
    graph.convertToSubgraph(new Set([graph._nodes.find(node => node.comfyClass === 'CBGradSAMBlend')]))
    window.app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()
  })
  seen.insideEnd = await runLoaded(page)
  seen.inside = await said(page, warned)
  await afterReload(page)
  seen.insideReloaded = await said(page, warned)
}

// What stands beneath the blend, wherever it is, once it is as expected.
async function said(page, expected) {
  const words = await settled(page, () => page.evaluate(() => {
    const { app } = window, root = app.rootGraph ?? app.graph, graph = root._nodes.find(node => node.subgraph)?.subgraph ?? root
    if (app.canvas.graph !== graph) app.canvas.setGraph(graph)
    Object.assign(app.canvas.ds, { scale: 0.6, offset: [100, 300] })
    app.canvas.setDirty(true, true)
    const node = graph._nodes.find(each => each.comfyClass === 'CBGradSAMBlend')
    const { element } = node.widgets.find(widget => widget.name === 'cb_summary'), { classList } = element
    return { words: element.textContent, warning: classList.contains('cb-warning'), error: classList.contains('cb-error') }
  }), expected)
  await page.evaluate(() => {
    const { app } = window, root = app.rootGraph ?? app.graph
    if (app.canvas.graph !== root) app.canvas.setGraph(root)
  })
  return words
}

async function change(page, type, name, value) {
  await page.evaluate(([type, name, value]) => {
    const node = window.app.graph._nodes.find(each => each.comfyClass === type)
    node.widgets.find(widget => widget.name === name).value = value
  }, [type, name, value])
}
