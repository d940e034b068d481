// Opens the template browser. Reads its orders as JSON from the first argument {playwright, browser, url, pictures, packs}
// and prints, by pack, the titles of its templates in their order; screenshots go to `pictures`.
import { settled, withPage } from '../../devtools/page.mjs'

const orders = JSON.parse(process.argv[2])

await withPage(orders, async (page, complaints) => {
  const seen = { complaints, titles: {} }
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates'))
  for (const pack of orders.packs) {
    const shelf = page.getByText(pack, { exact: true }).first()
    await shelf.click()
    const titles = page.locator('[role=dialog]').getByText(/^\d .*\(.*\)$/)
    await titles.first().waitFor()
    seen.titles[pack] = [...new Set(await settled(page, () => titles.allTextContents()))].map(title => title.trim())
    await page.screenshot({ path: `${orders.pictures}/${pack}.png` })
  }
  return seen
})
