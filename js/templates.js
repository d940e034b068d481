// The pack's templates by their numbers and titles, the family that most people have first: ComfyUI's server lists them
// as the disk does, which on Linux is no order at all.
import { api } from '../../scripts/api.js'

const FIRST = 'SDXL'
const HERE = decodeURIComponent(import.meta.url.split('/').at(-2)) // the pack's folder in custom_nodes

export function sortTemplates() {
  const given = api.getWorkflowTemplates
  if (!given) return
  api.getWorkflowTemplates = async function () {
    const templates = await given.apply(this, arguments)
    for (const [pack, names] of Object.entries(templates)) if (pack.startsWith(HERE)) names.sort(compare)
    return templates
  }
}

function compare(one, other) {
  const [mine, theirs] = [one, other].map(keyOf)
  const differs = mine.findIndex((part, place) => part !== theirs[place])
  return differs < 0 ? 0 : mine[differs] < theirs[differs] ? -1 : 1
}

// "1 Style from a picture (Flux)": the title, whether another family comes first, the family.
function keyOf(name) {
  const [title, family = ''] = name.split(/ \(|\)$/)
  return [title, family === FIRST ? 0 : 1, family]
}
