// The pack's nodes in the user's language where the front end leaves them in English: 1.32 reads the translations of
// packs (locales/<language>/nodeDefs.json) after it has named every node.
import { wordsOf } from './words.js'

let nodes = {}

// To be awaited before nodes are registered: the front end does not wait for each one's registration.
export async function loadNames() {
  nodes = await wordsOf('nodeDefs')
}

// The title of a node type that is about to be registered.
export function translateType(nodeType, nodeData) {
  const title = nodes[nodeData.name]?.display_name
  if (title) nodeData.display_name = nodeType.title = title
}

// Names of sockets and widgets; what the user has named otherwise stays.
export function translateNode(node) {
  const { inputs = {}, outputs = {} } = nodes[node.comfyClass] ?? {}
  for (const widget of node.widgets ?? []) {
    const name = inputs[widget.name]?.name
    if (!name) continue
    widget.label = name
    if (widget.element?.placeholder === widget.name) widget.element.placeholder = name // all that names a field of several lines
  }
  for (const input of node.inputs ?? []) if (inputs[input.name]?.name) input.localized_name = inputs[input.name].name
  node.outputs?.forEach((output, slot) => {
    if (outputs[slot]?.name) output.localized_name = outputs[slot].name
  })
}
