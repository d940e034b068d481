// Reads the graph around a node: which profile reaches it, and which values its widgets will send.
import { app } from '../../../scripts/app.js'

const SUBGRAPH_INPUT = -10
const STORED = 'cb_profile'
const FEW = 64 // links followed before giving up: a graph with a loop must not hang the page

// {file} for a profile that a loader upstream names, {shown} for one that a run has measured, else null.
export function profileOf(node) {
  const source = node.comfyClass === 'CBSelectLayers' ? originOf(node, 'profile') : node
  return fileOf(source) ?? shownBy(source) ?? shownBy(node)
}

// Remembers the profile that a node's run has shown. It is saved with the workflow where no file names it.
export function rememberProfile(node, key) {
  if (profileOf(node)?.file === undefined) node.properties[STORED] = key
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

export function widgetOf(node, name) {
  return node.widgets?.find(widget => widget.name === name)
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
  const shown = node?.properties?.[STORED]
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

function linkInto(node, name) {
  const input = node.inputs?.find(each => each.name === name)
  return input?.link == null ? null : linkOf(node.graph, input.link)
}

function linkOf(graph, id) {
  return graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null
}

// The node a link really comes from, through reroutes and the borders of subgraphs: [node], or [holder, widget] where
// it is a widget of the subgraph's own node.
function follow(node, link) {
  let graph = node.graph
  for (let steps = 0; link && steps < FEW; steps++) {
    if (Number(link.origin_id) === SUBGRAPH_INPUT) { // newer front ends write ids as text
      const name = graph.inputs?.[link.origin_slot]?.name
      const holder = holderOf(graph, rootGraph())
      const outer = holder && linkInto(holder, name)
      if (!outer) return [null, holder && widgetOf(holder, name)]
      graph = holder.graph
      link = outer
      continue
    }
    const origin = graph.getNodeById(link.origin_id)
    if (origin?.subgraph) {
      graph = origin.subgraph
      link = linkOf(graph, graph.outputs?.[link.origin_slot]?.linkIds?.[0])
    } else if (origin?.type === 'Reroute') {
      link = origin.inputs[0].link == null ? null : linkOf(graph, origin.inputs[0].link)
    } else {
      return [origin]
    }
  }
  return [null]
}

function rootGraph() {
  return app.rootGraph ?? app.graph
}

// The node that holds a subgraph, anywhere below `graph`.
function holderOf(subgraph, graph) {
  const holders = (graph?._nodes ?? graph?.nodes ?? []).filter(node => node.subgraph)
  const found = holders.find(node => node.subgraph === subgraph)
  if (found) return found
  for (const node of holders) {
    const deeper = holderOf(subgraph, node.subgraph)
    if (deeper) return deeper
  }
  return null
}
