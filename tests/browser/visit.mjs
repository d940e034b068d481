// Opens ComfyUI's front end, loads workflows into it and runs some. Reads its orders as JSON from the first argument
// {playwright, browser, url, workflows: [{name, path, run}]} and prints what it saw as one line of JSON.
import { readFile } from 'node:fs/promises'
import { withPage } from './page.mjs'

const RUN_MILLISECONDS = 600_000

const orders = JSON.parse(process.argv[2])
await withPage(orders, visit)

async function visit(page, complaints) {
  const seen = { complaints, nodes: [], workflows: {} }
  seen.nodes = await page.evaluate(() => Object.keys(window.LiteGraph.registered_node_types))
  for (const { name, path, run } of orders.workflows) {
    const workflow = JSON.parse(await readFile(path, 'utf8'))
    seen.workflows[name] = { prompt: await load(page, workflow), end: run ? await runLoaded(page) : null }
  }
  return seen
}

// The prompt that the front end would send for the workflow.
async function load(page, workflow) {
  return page.evaluate(async workflow => {
    await window.app.loadGraphData(workflow)
    return (await window.app.graphToPrompt()).output
  }, workflow)
}

// Presses Run; the name of the event that ended it, and its message if it failed.
async function runLoaded(page) {
  return page.evaluate(async milliseconds => {
    const { api } = await import('/scripts/api.js')
    const ends = ['execution_success', 'execution_error', 'execution_interrupted']
    const ended = new Promise(resolve => {
      for (const event of ends) {
        api.addEventListener(event, e => resolve({ event, message: e.detail.exception_message ?? '' }), { once: true })
      }
      setTimeout(() => resolve({ event: 'timeout', message: '' }), milliseconds)
    })
    await window.app.queuePrompt(0, 1)
    const refused = Object.keys(window.app.lastNodeErrors ?? {})
    return refused.length ? { event: 'refused', message: JSON.stringify(window.app.lastNodeErrors) } : ended
  }, RUN_MILLISECONDS)
}
