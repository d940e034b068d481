// Reads the graph around a node: which profile reaches it, and which values its widgets will send.
import { follow, linkInto, widgetOf } from '../graph.js'
import { resultOf } from '../results.js'

// {file} for a profile that a loader upstream names, {shown} for one that a run has measured, else null.
export function profileOf(node) {
  const taken = node.comfyClass !== 'CBLoadSensitivityProfile' && isLinked(node, 'profile')
  const source = taken ? originOf(node, 'profile') : node
  return fileOf(source) ?? shownBy(source) ?? shownBy(node)
}

const inputs = {} // the names of a node type's inputs, by type

// Keeps the schema's own list of inputs, so that the map asks for every widget that the node has.
export function rememberInputs({ name, input }) {
  inputs[name] = Object.keys({ ...input?.required, ...input?.optional })
}

// The values of Select Layers' widgets as the prompt will have them; `linked` names those that only a run can tell.
export function selectionValues(node) {
  const values = {}, linked = []
  for (const name of inputs[node.comfyClass] ?? []) {
    if (!widgetOf(node, name)) continue
    const value = valueOf(node, name)
    if (value === undefined) linked.push(name)
    values[name] = value ?? widgetOf(node, name)?.value
  }
  return { values, linked }
}

export function isLinked(node, name) {
  return linkInto(node, name) != null
}

function fileOf(node) {
  if (node?.comfyClass !== 'CBLoadSensitivityProfile') return null
  const file = valueOf(node, 'profile')
  return file === undefined ? null : { file }
}

function shownBy(node) {
  const shown = node && resultOf(node).cb_profile?.[0]
  return shown ? { shown } : null
}

// A widget's value, also where a primitive or a subgraph's own widget supplies it; undefined if only a run can tell.
function valueOf(node, name) {
  if (!isLinked(node, name)) return widgetOf(node, name)?.value
  const [origin, widget] = follow(node, linkInto(node, name))
  if (widget) return widget.value
  return origin?.type?.startsWith('Primitive') ? origin.widgets?.[0]?.value : undefined
}

function originOf(node, name) {
  return follow(node, linkInto(node, name))[0]
}
