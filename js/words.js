// The widgets' words in the user's language, from the `conditionalBalance` part of locales/<language>/main.json.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

let loading = null

// A function (key, values) -> words; {name} in the words is replaced by values.name.
export function loadWords() {
  loading ??= read()
  return loading
}

async function read() {
  const languages = await (await api.fetchApi('/i18n')).json()
  const chosen = String(app.extensionManager?.setting?.get('Comfy.Locale') ?? 'en')
  const known = [chosen, chosen.split('-')[0], 'en'].map(language => languages[language]?.conditionalBalance)
  const words = Object.assign({}, ...known.reverse())
  return (key, values = {}) => (words[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? '')
}
