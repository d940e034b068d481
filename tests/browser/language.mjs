// Opens nodes in another language. Reads its orders as JSON from the first argument {playwright, browser, url, languages,
// nodes, pictures} and prints, by language and node, the title and the names of widgets, sockets and outputs.
import { withPage } from '../../devtools/page.mjs'

const orders = JSON.parse(process.argv[2])

await withPage(orders, async page => {
  const seen = {}
  for (const language of [...orders.languages, 'en']) { // English last, for the visits after this one
    await page.evaluate(language => window.app.extensionManager.setting.set('Comfy.Locale', language), language)
    await page.waitForTimeout(1500)
    await page.reload()
    await page.waitForFunction(() => window.app?.extensionManager && window.app?.graph, null, { timeout: 60_000 })
    await page.waitForTimeout(2000)
    seen[language] = await page.evaluate(names => {
      const { app, LiteGraph } = window
      app.graph.clear()
      return Object.fromEntries(names.map((name, place) => {
        const node = LiteGraph.createNode(name)
        node.pos = [400 * place, 0]
        app.graph.add(node)
        const inputs = Object.fromEntries(node.inputs.map(each => [each.name, each.label ?? each.localized_name]))
        const widgets = Object.fromEntries(node.widgets.map(each => [each.name, each.label]))
        return [name, { title: node.title, inputs, widgets, outputs: node.outputs.map(each => each.localized_name) }]
      }))
    }, orders.nodes)
    await page.waitForTimeout(1000)
    await page.screenshot({ path: `${orders.pictures}/${language}.png` })
  }
  return seen
})
