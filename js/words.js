// The widgets' words in the user's language, from the `conditionalBalance` part of locales/<language>/main.json.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

let loading = null, fetching = null

// A function (key, values) -> words; {name} in the words is replaced by values.name.
export function loadWords() {
  loading ??= read()
  return loading
}

async function read() {
  const words = await wordsOf('conditionalBalance')
  return (key, values = {}) => (words[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? '')
}

// One part of the words of all packs, in the user's language, and in English where that lacks them.
export async function wordsOf(part) {
  fetching ??= api.fetchApi('/i18n').then(response => response.json())
  const languages = await fetching
  const chosen = String(app.extensionManager?.setting?.get('Comfy.Locale') ?? 'en')
  const known = [chosen, chosen.split('-')[0], 'en'].map(language => languages[language]?.[part])
  return Object.assign({}, ...known.reverse())
}
