// Places a subgraph blueprint as a person would, by searching for it, connects it and runs it. Reads its orders as JSON
// from the first argument {playwright, browser, url, pictures, blueprint, widgets, workflow} and prints, by renderer,
// what it saw; a screenshot goes to `pictures`. The workflow has every other node; links name the blueprint's slots.
import { chooseRenderer, RENDERERS, runLoaded, withPage } from '../../devtools/page.mjs'
import { free } from './stay.mjs'

const orders = JSON.parse(process.argv[2])

await withPage(orders, async (page, complaints) => {
  const seen = { complaints }
  for (const renderer of RENDERERS) {
    await free(orders.url)
    await chooseRenderer(page, renderer)
    await page.evaluate(workflow => window.app.loadGraphData(workflow), orders.workflow)
    await place(page)
    seen[renderer] = await page.evaluate(connect, orders)
    seen[renderer].prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output)
    seen[renderer].end = await runLoaded(page)
    await page.waitForTimeout(1500)
    seen[renderer].map = await page.evaluate(() => {
      const map = document.querySelector('.cb-map')
      return Boolean(map?.checkVisibility() && !('empty' in map.dataset))
    })
    await page.screenshot({ path: `${orders.pictures}/${orders.blueprint}_${renderer}.png` })
  }
  return seen
})

// Opens the search, types the blueprint's name and takes the first that is found.
async function place(page) {
  await page.evaluate(() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle'))
  const field = page.locator('.comfy-vue-node-search-container input, [role="dialog"] input').first()
  await field.fill(orders.blueprint)
  await page.getByText(orders.blueprint).first().waitFor()
  await page.keyboard.press('Enter')
  await page.waitForFunction(() => window.app.graph._nodes.some(node => node.subgraph), null, { timeout: 30_000 })
  await page.mouse.click(900, 500) // newer front ends let the node hang from the pointer until a click
  await page.waitForFunction(() => window.app.graph._nodes.every(node => !node.flags.ghost), null, { timeout: 30_000 })
}

// Connects the blueprint's slots by name and sets its widgets; what it offers of both.
function connect({ links, widgets }) {
  const { graph } = window.app
  const holder = graph._nodes.find(node => node.subgraph)
  const inputs = holder.inputs.map(each => each.name), outputs = holder.outputs.map(each => each.name)
  for (const { from, slot, to, name } of links) {
    const source = from === 'blueprint' ? holder : graph.getNodeById(from)
    const target = to === 'blueprint' ? holder : graph.getNodeById(to)
    source.connect(from === 'blueprint' ? outputs.indexOf(slot) : slot, target, target.inputs.findIndex(each => each.name === name))
  }
  const offered = Object.fromEntries(holder.widgets.map(widget => [widget.name, widget.value]))
  for (const widget of holder.widgets) if (widget.name in widgets) widget.value = widgets[widget.name]
  return { inputs, outputs, offered }
}
