// Opens nodes in another language. Reads its orders as JSON from the first argument {playwright, browser, url, languages,
// nodes, profile, pictures} and prints, by language and node, the title and the names of widgets, sockets and outputs,
// and as `line` what the layer map of CBSelectLayers says of a profile.
import { reopen, withPage } from '../../devtools/page.mjs'

const orders = JSON.parse(process.argv[2])

await withPage(orders, async page => {
  const seen = {}
  for (const language of [...orders.languages, 'en']) { // English last, for the visits after this one
    await reopen(page, language)
    seen[language] = await page.evaluate(names => {
      const { app, LiteGraph } = window
      app.graph.clear()
      return Object.fromEntries(names.map((name, place) => {
        const node = LiteGraph.createNode(name)
        node.pos = [400 * place, 0]
        app.graph.add(node)
        const inputs = Object.fromEntries(node.inputs.map(each => [each.name, each.label ?? each.localized_name]))
        const widgets = Object.fromEntries(node.widgets.map(each => [each.name, each.label]))
        const fields = Object.fromEntries(node.widgets.filter(({ element }) => element?.placeholder).map(each => [each.name, each.element.placeholder]))
        return [name, { title: node.title, inputs, widgets, fields, outputs: node.outputs.map(each => each.localized_name) }]
      }))
    }, orders.nodes)
    await page.evaluate(profile => {
      const { app, LiteGraph } = window, loader = LiteGraph.createNode('CBLoadSensitivityProfile')
      loader.pos = [0, 600]
      app.graph.add(loader)
      loader.widgets.find(widget => widget.name === 'profile').value = profile
      const chooser = app.graph._nodes.find(node => node.comfyClass === 'CBSelectLayers')
      loader.connect(0, chooser, chooser.inputs.findIndex(input => input.name === 'profile'))
      window.chooser = chooser
    }, orders.profile)
    await page.waitForFunction(() => window.chooser.widgets.some(({ element }) => /\d/.test(element?.querySelector('.cb-map-line')?.textContent)))
    seen[language].line = await page.evaluate(() => document.querySelector('.cb-map-editable:not([data-empty]) .cb-map-line').textContent)
    await page.screenshot({ path: `${orders.pictures}/${language}.png` })
  }
  return seen
})
