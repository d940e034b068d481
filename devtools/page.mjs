// Opens ComfyUI's front end in a browser of its own that reaches nothing but this machine.
import { pathToFileURL } from 'node:url'

// Other machines are out of reach by name: a route that aborts requests would switch off the browser's cache, and then
// every reload of the page fetches and compiles some five hundred files anew.
const ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1']
const RUN_MILLISECONDS = 600_000
const SETTLE_MILLISECONDS = 30_000
const LOOKS = 5, LOOK_MILLISECONDS = 100 // js/watch.js looks ten times a second

const underWay = new WeakMap() // by page, its requests that have not been answered

// Where ComfyUI's own packages are older than it asks for, a warning lies over the nodes until a person closes it.
const TOASTS_ASIDE = '.p-toast, .p-toast * { pointer-events: none !important }'

export const RENDERERS = ['litegraph', 'nodes2']

// Calls visit(page, complaints) once the front end is up, and prints what it returns as one line of JSON. Complaints are
// the page's errors, and grow.
export async function withPage({ playwright, browser: executablePath, url }, visit) {
  const { chromium } = await import(pathToFileURL(playwright).href)
  const browser = await chromium.launch({ executablePath, args: ARGS })
  try {
    const context = await browser.newContext({ viewport: { width: 1400, height: 900 } })
    const page = await context.newPage(), complaints = []
    countRequests(page)
    await page.addInitScript(style => document.addEventListener('DOMContentLoaded', () => {
      document.head.append(Object.assign(document.createElement('style'), { textContent: style }))
    }), TOASTS_ASIDE)
    page.on('console', message => {
      if (message.type() === 'error') complaints.push(`${message.text()} ${message.location().url}`)
    })
    page.on('pageerror', error => complaints.push(error.stack ?? String(error)))
    // Before the page opens: to newcomers the front end shows a template and a dialog that covers everything, and the
    // last visit to this server may have ended in the other renderer.
    const settings = { 'Comfy.TutorialCompleted': true, 'Comfy.VueNodes.Enabled': false }
    await fetch(`${url}/settings`, { method: 'POST', body: JSON.stringify(settings) })
    await page.goto(url)
    await page.waitForFunction(() => window.app?.extensionManager && window.app?.graph, null, { timeout: 60_000 })
    console.log(JSON.stringify(await visit(page, complaints)))
  } finally {
    await browser.close()
  }
}

function countRequests(page) {
  const requests = new Set()
  underWay.set(page, requests)
  page.on('request', request => requests.add(request))
  for (const end of ['requestfinished', 'requestfailed']) page.on(end, request => requests.delete(request))
  page.on('framenavigated', frame => frame === page.mainFrame() && requests.clear())
}

// What read() gives once it is as expected and has stayed the same while our views looked a few more times, with no request
// under way. The page's own clock counts the looks: a busy machine makes them later, not fewer. What does not come as
// expected within half a minute is given as it is then, for the test to judge.
export async function settled(page, read = () => null, expected = () => true, looks = LOOKS) {
  const end = Date.now() + SETTLE_MILLISECONDS
  let before, now = await read()
  do {
    before = now
    await letLook(page, looks)
    now = await read()
  } while ((underWay.get(page).size || !expected(now) || JSON.stringify(now) !== JSON.stringify(before)) && Date.now() < end)
  return now
}

async function letLook(page, looks) {
  await page.evaluate(async ([looks, milliseconds]) => {
    for (let look = 0; look < looks; look++) await new Promise(resolve => setTimeout(resolve, milliseconds))
    await new Promise(requestAnimationFrame)
  }, [looks, LOOK_MILLISECONDS])
}

// Opens the page anew, in a language if one is named.
export async function reopen(page, language) {
  if (language) await page.evaluate(language => window.app.extensionManager.setting.set('Comfy.Locale', language), language)
  await settled(page) // until the setting has been sent
  await page.reload()
  await page.waitForFunction(() => window.app?.extensionManager && window.app?.graph, null, { timeout: 60_000 })
  await settled(page)
}

// Visits the page in both renderers, one after the other; what one saw before it failed is kept beside its problem.
export async function inEachRenderer(orders, visit) {
  await withPage(orders, async (page, complaints) => {
    const seen = { complaints }
    for (const name of RENDERERS) {
      seen[name] = {}
      try {
        await chooseRenderer(page, name)
        await visit(page, name, seen[name])
      } catch (error) {
        seen[name].problem = String(error.stack ?? error)
        await page.screenshot({ path: `${orders.pictures}/${name}_problem.png` })
      }
    }
    return seen
  })
}

// Presses Run; the name of the event that ended it, and its message if it failed.
export async function runLoaded(page) {
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

// Chooses between the litegraph canvas and Nodes 2.0 for what is loaded next.
export async function chooseRenderer(page, name) {
  await page.evaluate(on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on), name === 'nodes2')
}
