// Measures the layer map in a real front end. Reads its orders {playwright, browser, url, profile, rounds} as JSON from the
// first argument and prints milliseconds: `drawings` of one map, and `loads` of the page with the pack and without it.
import { withPage } from '../devtools/page.mjs'

const PACK = /\/extensions\/conditional_balance/
const orders = JSON.parse(process.argv[2])

await withPage(orders, async page => {
  const loads = { with: [], without: [] }
  await loaded(page) // fills the browser's cache
  for (let round = 0; round < orders.rounds; round++) {
    loads.with.push(await loaded(page))
    await page.route('**/extensions', leaveOut)
    loads.without.push(await loaded(page))
    await page.unroute('**/extensions', leaveOut)
  }
  await loaded(page)
  return { loads, drawings: await drawings(page) }
})

// The server's list of scripts as it is where this pack is not installed.
async function leaveOut(route) {
  const response = await route.fetch()
  const scripts = await response.json()
  await route.fulfill({ response, json: scripts.filter(script => !PACK.test(script)) })
}

// Milliseconds from going to the page until the front end has a graph and has drawn it.
async function loaded(page) {
  const start = performance.now()
  await page.goto(orders.url)
  await page.waitForFunction(() => window.app?.extensionManager && window.app?.graph, null, { timeout: 60_000 })
  await page.evaluate(() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))))
  return performance.now() - start
}

// 70 layers x 14 noise levels x 2 features.
async function drawings(page) {
  return page.evaluate(async profile => {
    const { draw, layout } = await import('/extensions/conditional_balance/layer_map/draw.js')
    const { ask } = await import('/extensions/conditional_balance/server.js')
    const map = await ask('profile', { file: profile })
    const selection = await ask('selection', { profile: { file: profile }, values: {} })
    const canvas = Object.assign(document.createElement('canvas'), { width: 960, height: 600 })
    const context = canvas.getContext('2d', { willReadFrequently: true }) // drawn at once, not queued for later
    const times = []
    for (let turn = 0; turn < 50; turn++) {
      const start = performance.now()
      const plan = layout(map, 960, 600)
      draw(context, plan, map, selection, { panel: 0, level: 3, layer: 9 }, { ink: '#fff', titles: ['Q', 'K'] })
      context.getImageData(0, 0, 1, 1)
      times.push(performance.now() - start)
    }
    return times
  }, orders.profile)
}
