// Reads the graph around a node: which profile reaches it, and which values its widgets will send.
import { follow, linkInto, widgetOf } from '../graph.js'
import { resultOf } from '../results.js'

// {file} for a profile that a loader upstream names, {shown} for one that a run has measured, else null. `holder` is
// the subgraph's node through which the node inside it is seen, here and below.
export function profileOf(node, holder = null) {
  const taken = node.comfyClass !== 'CBLoadSensitivityProfile' && isLinked(node, 'profile')
  const source = taken ? follow(node, linkInto(node, 'profile'), holder)[0] : node
  return fileOf(source, holder) ?? shownBy(source) ?? shownBy(node)
}

const inputs = {} // the names of a node type's inputs, by type

// Keeps the schema's own list of inputs, so that the map asks for every widget that the node has.
export function rememberInputs({ name, input }) {
  inputs[name] = Object.keys({ ...input?.required, ...input?.optional })
}

// The values of Select Layers' widgets as the prompt will have them; `linked` names those that only a run can tell.
export function selectionValues(node, holder = null) {
  const values = {}, linked = []
  for (const name of inputs[node.comfyClass] ?? []) {
    if (!widgetOf(node, name)) continue
    const value = valueOf(node, name, holder)
    if (value === undefined) linked.push(name)
    values[name] = value ?? widgetOf(node, name)?.value
  }
  return { values, linked }
}

export function isLinked(node, name) {
  return linkInto(node, name) != null
}

// The widget that decides an input: the node's own, or the one of a subgraph's node that feeds it; undefined where a
// node does.
export function sourceWidget(node, name, holder = null) {
  return isLinked(node, name) ? follow(node, linkInto(node, name), holder)[1] ?? undefined : widgetOf(node, name)
}

function fileOf(node, holder) {
  if (node?.comfyClass !== 'CBLoadSensitivityProfile') return null
  const file = valueOf(node, 'profile', holder)
  return file === undefined ? null : { file }
}

function shownBy(node) {
  const shown = node && resultOf(node).cb_profile?.[0]
  return shown ? { shown } : null
}

// A widget's value, also where a primitive or a subgraph's own widget supplies it; undefined if only a run can tell.
function valueOf(node, name, holder) {
  const widget = sourceWidget(node, name, holder)
  if (widget || !isLinked(node, name)) return widget?.value
  const [origin] = follow(node, linkInto(node, name), holder)
  return origin?.type?.startsWith('Primitive') ? origin.widgets?.[0]?.value : undefined
}
