// The pack's style sheet, linked once, by the first widget that needs it.
let link = null

export function addStyle() {
  if (link) return
  link = Object.assign(document.createElement('link'), { rel: 'stylesheet' })
  link.href = new URL('./style.css', import.meta.url).href
  document.head.append(link)
}
