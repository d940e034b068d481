// Opens the help of nodes in ComfyUI's front end and looks whether their figures show. Reads its orders as JSON from the
// first argument {playwright, browser, url, nodes, pictures}, where nodes are lists by language, and prints what it saw as
// one line of JSON. English comes last, for the visits after this one.
import { reopen, withPage } from '../../devtools/page.mjs'

const orders = JSON.parse(process.argv[2])
await withPage(orders, async page => {
  const seen = {}
  for (const [language, nodes] of Object.entries(orders.nodes)) {
    await reopen(page, language)
    await page.evaluate(() => { window.app.extensionManager.sidebarTab.activeSidebarTabId = 'node-library' })
    seen[language] = {}
    for (const node of nodes) seen[language][node] = await open(page, node)
    await page.screenshot({ path: `${orders.pictures}/${language}.png` })
  }
  return seen
})

// The figure's width in the open help of a node, on disk and on screen, and the page's title and text.
async function open(page, node) {
  await page.evaluate(node => {
    const stores = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s
    if (stores.has('nodeHelp')) return stores.get('nodeHelp').openHelp(stores.get('nodeDef').nodeDefsByName[node])
    // Newer front ends show help beside the graph, of the node that is selected.
    const { app, LiteGraph } = window
    app.graph.clear()
    app.graph.add(LiteGraph.createNode(node))
    app.canvas.selectItems(app.graph._nodes)
    stores.get('rightSidePanel').openPanel('info')
  }, node)
  const figure = page.locator(`.node-help-content img[src*="figures/${node}."]`)
  await figure.waitFor({ timeout: 30_000 })
  return figure.evaluate(async image => {
    await image.decode()
    const help = image.closest('.node-help-content')
    const title = help.querySelector('h1').textContent
    const headings = [...help.querySelectorAll('h2')].map(heading => heading.textContent)
    return { width: image.naturalWidth, shown: image.clientWidth, title, headings, text: help.textContent }
  })
}
