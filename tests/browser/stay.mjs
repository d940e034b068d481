// Opens a workflow as if it had been saved, and does what loses what nodes show.
const WAIT = { timeout: 60_000 }

// Nodes before one that the server has cached are not run, and show nothing in a workflow that is new to the page.
export async function free(url) {
  const body = JSON.stringify({ unload_models: true, free_memory: true })
  await fetch(`${url}/free`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body })
}

export async function open(page, prompt, name) {
  await page.evaluate(async ([prompt, name]) => {
    await window.app.loadApiJson(prompt, name)
    const saved = JSON.parse(JSON.stringify(window.app.graph.serialize()))
    saved.id = crypto.randomUUID() // as a saved workflow has
    for (const node of saved.nodes) node.widgets_values = node.widgets_values?.map(value => value === 'randomize' ? 'fixed' : value) // later runs need not sample
    await window.app.loadGraphData(saved, true, true, name)
  }, [prompt, name])
  await page.waitForTimeout(1000)
}

// How high an element is in the page, not on the screen: a run may not change it, or nodes beneath would be covered.
export async function heightOf(page, selector) {
  return page.locator(selector).first().evaluate(element => element.offsetHeight) // once it is in the page
}

export async function afterUndo(page) {
  await page.evaluate(async () => {
    const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker
    window.app.graph._nodes[0].pos = [-900, -900]
    tracker.checkState()
    await tracker.undo()
  })
  await page.waitForTimeout(1000)
}

export async function afterTabs(page, title) {
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow'))
  await page.waitForFunction(() => !window.app.graph._nodes.length, null, WAIT)
  await page.evaluate(() => window.app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')).catch(() => {})
  await page.waitForTimeout(500)
  if (!(await page.evaluate(() => window.app.graph._nodes.length))) await page.locator(`.workflow-tabs >> text=${title}`).last().click()
  await page.waitForFunction(() => window.app.graph._nodes.length, null, WAIT)
}

export async function afterReload(page) {
  await page.waitForTimeout(1500) // until the front end has kept its draft
  await page.reload()
  await page.waitForFunction(() => window.app?.extensionManager && window.app?.graph?._nodes?.length, null, WAIT)
  await page.waitForTimeout(2500)
}
