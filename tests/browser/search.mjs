// Types words into the node search. Reads its orders as JSON from the first argument {playwright, browser, url, words,
// names, pictures} and prints, by word, which of the names were offered, and whether this front end searches aliases.
import { settled, withPage } from '../../devtools/page.mjs'

const orders = JSON.parse(process.argv[2])
await withPage(orders, async page => {
  await page.evaluate(() => window.app.graph.clear())
  await page.evaluate(() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle'))
  const field = page.locator('.comfy-vue-node-search-container input, [role="dialog"] input').first()
  const found = {}
  for (const word of [...orders.words, orders.words[0]]) {
    await field.fill(word)
    found[word] = await settled(page, () => page.evaluate(names => names.filter(name => document.body.innerText.includes(name)), orders.names))
  }
  await page.screenshot({ path: `${orders.pictures}/search.png` })
  const aliases = await page.evaluate(() => {
    const stores = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s
    return stores.get('nodeDef').nodeSearchService.nodeFuseSearch.fuse.options.keys.includes('search_aliases')
  })
  return { found, aliases }
})
