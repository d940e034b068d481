// Walks the graph: where links really come from, and the names under which core knows a node.
import { app } from '../../scripts/app.js'

const SUBGRAPH_INPUT = -10
const FEW = 64 // links followed before giving up: a graph with a loop must not hang the page

export function rootGraph() {
  return app.rootGraph ?? app.graph
}

// All nodes of a graph and of the subgraphs in it.
export function nodesOf(graph) {
  return childrenOf(graph).flatMap(node => [node, ...(node.subgraph ? nodesOf(node.subgraph) : [])])
}

// Whether a node is not in its graph, or that not in the workflow. Undo and loading another workflow tell only nodes of the
// root graph that they are removed; and a copy of a subgraph's own node for the clipboard has the graph and, in front end
// 1.58.1, the number of its original.
export function isGone(node) {
  const { graph } = node, root = rootGraph()
  if (!graph) return false // not yet in one, or told
  if (graph.getNodeById(node.id) !== node) return true
  return graph !== root && Boolean(root.subgraphs) && root.subgraphs.get(graph.id) !== graph
}

// The name of a node in core's store of outputs: its own in the root graph, else "subgraph:node".
export function locatorOf(node) {
  return node.graph && node.graph !== rootGraph() ? `${node.graph.id}:${node.id}` : String(node.id)
}

// The name of a node in a prompt: the ids of the nodes that hold it, and its own.
export function executionIdOf(node) {
  const holder = node.graph && node.graph !== rootGraph() ? holderOf(node.graph, rootGraph()) : null
  return holder ? `${executionIdOf(holder)}:${node.id}` : String(node.id)
}

// The node of an execution id; undefined when the graph has none.
export function nodeAt(executionId) {
  let graph = rootGraph(), node
  for (const id of executionId.split(':')) {
    node = childrenOf(graph).find(each => String(each.id) === id)
    graph = node?.subgraph
  }
  return node
}

export function widgetOf(node, name) {
  return node.widgets?.find(widget => widget.name === name)
}

export function linkInto(node, name) {
  const input = node.inputs?.find(each => each.name === name)
  return input?.link == null ? null : linkOf(node.graph, input.link)
}

function linkOf(graph, id) {
  return graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null
}

// The node a link really comes from, through reroutes and the borders of subgraphs: [node], or [null, widget] where
// it is a widget of the subgraph's own node. `through` is that node where several hold the same subgraph.
export function follow(node, link, through = null) {
  let graph = node.graph
  for (let steps = 0; link && steps < FEW; steps++) {
    if (Number(link.origin_id) === SUBGRAPH_INPUT) { // newer front ends write ids as text
      const name = graph.inputs?.[link.origin_slot]?.name
      const holder = through?.subgraph === graph ? through : holderOf(graph, rootGraph())
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

// The node that holds a subgraph, anywhere below `graph`.
function holderOf(subgraph, graph) {
  const holders = childrenOf(graph).filter(node => node.subgraph)
  const found = holders.find(node => node.subgraph === subgraph)
  if (found) return found
  for (const node of holders) {
    const deeper = holderOf(subgraph, node.subgraph)
    if (deeper) return deeper
  }
  return null
}

export function childrenOf(graph) {
  return [...(graph?._nodes ?? graph?.nodes ?? [])]
}
