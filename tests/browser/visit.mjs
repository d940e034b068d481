// Opens ComfyUI's front end, loads workflows into it and runs some. Reads its orders as JSON from the first argument
// {playwright, browser, url, workflows: [{name, path, run}]} and prints what it saw as one line of JSON.
import { readFile } from 'node:fs/promises'
import { pathToFileURL } from 'node:url'

const RUN_MILLISECONDS = 600_000
const ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync']

const orders = JSON.parse(process.argv[2])
const { chromium } = await import(pathToFileURL(orders.playwright).href)
const browser = await chromium.launch({ executablePath: orders.browser, args: ARGS })
try {
  console.log(JSON.stringify(await visit(await openPage())))
} finally {
  await browser.close()
}

async function openPage() {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 } })
  await context.route(url => url.hostname !== '127.0.0.1', route => route.abort())
  return context.newPage()
}

async function visit(page) {
  const seen = { complaints: [], nodes: [], workflows: {} }
  page.on('console', message => {
    if (message.type() === 'error') seen.complaints.push(`${message.text()} ${message.location().url}`)
  })
  page.on('pageerror', error => seen.complaints.push(error.stack ?? String(error)))
  await page.goto(orders.url)
  await page.waitForFunction(() => window.app?.extensionManager && window.app?.graph, null, { timeout: 60_000 })
  await page.evaluate(() => window.app.extensionManager.setting.set('Comfy.TutorialCompleted', true))
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
