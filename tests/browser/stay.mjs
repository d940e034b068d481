// Opens a workflow as if it had been saved, and does what loses what nodes show; what they show then has to be waited for.
import { settled } from '../../devtools/page.mjs'

const WAIT = { timeout: 60_000 }
const NOTHING = {
  empty: { class_type: 'EmptyImage', inputs: { width: 16, height: 16, batch_size: 1, color: 0 } },
  seen: { class_type: 'PreviewImage', inputs: { images: ['empty', 0] } },
}

// Nodes before one that the server has cached are not run, and show nothing in a workflow that is new to the page. The
// server forgets them when its worker wakes up or has run something: asked while the worker collects garbage, it would
// do so only after the next prompt. So one that nobody looks at is run here.
export async function free(url) {
  await post(`${url}/free`, { unload_models: true, free_memory: true })
  const { prompt_id } = await (await post(`${url}/prompt`, { prompt: NOTHING })).json()
  const end = Date.now() + WAIT.timeout
  while (!(prompt_id in await (await fetch(`${url}/history/${prompt_id}`)).json())) {
    if (Date.now() > end) throw new Error('The server has not run an empty picture within a minute.')
    await new Promise(resolve => setTimeout(resolve, 100))
  }
}

function post(url, body) {
  return fetch(url, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })
}

export async function open(page, prompt, name) {
  await page.evaluate(async ([prompt, name]) => {
    await window.app.loadApiJson(prompt, name)
    const saved = JSON.parse(JSON.stringify(window.app.graph.serialize()))
    saved.id = crypto.randomUUID() // as a saved workflow has
    for (const node of saved.nodes) node.widgets_values = node.widgets_values?.map(value => value === 'randomize' ? 'fixed' : value) // later runs need not sample
    await window.app.loadGraphData(saved, true, true, name)
  }, [prompt, name])
  await settled(page)
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
}

export async function afterTabs(page, title) {
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow'))
  await page.waitForFunction(() => !window.app.graph._nodes.length, null, WAIT)
  await page.evaluate(() => window.app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')).catch(() => {})
  if (!(await settled(page, () => page.evaluate(() => window.app.graph._nodes.length)))) await page.locator(`.workflow-tabs >> text=${title}`).last().click()
  await page.waitForFunction(() => window.app.graph._nodes.length, null, WAIT)
}

export async function afterReload(page) {
  await page.waitForFunction(keptDraft, null, WAIT)
  await page.reload()
  await page.waitForFunction(() => window.app?.extensionManager && window.app?.graph?._nodes?.length, null, WAIT)
}

// Whether the front end has kept the workflow as it stands, which the reloaded page opens again.
function keptDraft() {
  const graph = window.app.rootGraph ?? window.app.graph
  const valuesOf = ({ nodes }) => JSON.stringify(nodes.map(node => [node.id, node.widgets_values ?? null]).sort(([one], [other]) => one - other))
  const wanted = valuesOf(graph.serialize())
  return [localStorage, sessionStorage].flatMap(Object.values).some(text => {
    const kept = parsed(text), draft = kept?.nodes ? kept : parsed(kept?.data) // newer front ends wrap it
    return draft?.id === graph.id && valuesOf(draft) === wanted
  })

  function parsed(text) {
    try {
      return JSON.parse(text)
    } catch {
      return null // something else that is kept
    }
  }
}
