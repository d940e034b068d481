// The layer maps that a subgraph's own node lists (properties.proxyWidgets) and the front end leaves out. Older front
// ends put the element of the node inside on it; newer ones keep only what can become an input of the subgraph, and set
// the names of the rest aside, where they are saved with the workflow.
import { childrenOf } from '../graph.js'
import { setAside } from '../holders.js'
import { watch } from '../watch.js'
import { LayerMap, NAME } from './view.js'

const SHOWN = new RegExp(`(^|: )${NAME}$`) // front ends put the number of the node inside before it

export class HeldMaps {
  constructor(holder) {
    Object.assign(this, { holder, views: new Map() }) // views by the node inside
    watch(this, holder)
  }

  look() {
    if (!this.holder.graph) return
    const wanted = new Set(this.isShown() ? [] : listedMaps(this.holder))
    for (const [node, view] of this.views) {
      if (wanted.has(node)) continue
      view.leave()
      this.views.delete(node)
    }
    for (const node of wanted) {
      if (!this.views.has(node)) this.views.set(node, new LayerMap(node, LayerMap.of(node).editable, this.holder))
    }
  }

  // Whether the front end shows a map by itself.
  isShown() {
    const ours = new Set([...this.views.values()].map(view => view.widget))
    return (this.holder.widgets ?? []).some(widget => !ours.has(widget) && SHOWN.test(widget.name))
  }
}

// The nodes inside whose maps a holder lists, in that order. Newer front ends number the nodes inside anew when a
// subgraph is pasted, and leave the list as it is: a number that no longer leads to a map stands for the next one.
function listedMaps(holder) {
  const ids = listedIds(holder)
  if (!ids.length) return []
  const inside = childrenOf(holder.subgraph).filter(node => LayerMap.of(node))
  const spare = inside.filter(node => !ids.includes(String(node.id)))
  return ids.map(id => inside.find(node => String(node.id) === id) ?? spare.shift()).filter(Boolean)
}

function listedIds(holder) {
  const kept = holder.properties?.proxyWidgets
  const entries = [...(Array.isArray(kept) ? kept : []), ...setAside(holder).map(({ originalEntry }) => originalEntry)]
  const ids = entries.filter(([id, name]) => Number(id) !== -1 && name === NAME).map(([id]) => String(id))
  return [...new Set(ids)]
}
