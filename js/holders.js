// What newer front ends (1.58) make of a subgraph's own node that an older one wrote: entries of its list of widgets
// (properties.proxyWidgets) that they cannot turn into inputs are set aside, and saved, in another property.
import { nodesOf } from './graph.js'

const ASIDE = 'proxyWidgetErrorQuarantine'

// [{originalEntry: [id of a node inside or '-1', widget], ...}], empty in older front ends.
export function setAside({ properties }) {
  return Array.isArray(properties?.[ASIDE]) ? properties[ASIDE].filter(each => Array.isArray(each?.originalEntry)) : []
}

// Entries of '-1', the node's own widgets, are set aside with their values of that moment, which come back at every load
// and undo: what was entered since would be lost. The node keeps these values itself, so the copies go, before they are
// read (onConfigure) and right after they were made.
export function forgetOldValues(holder) {
  const before = holder.onConfigure
  holder.onConfigure = function () {
    forget(this)
    queueMicrotask(() => forget(this))
    return before?.apply(this, arguments)
  }
}

function forget(holder) {
  const all = setAside(holder), left = all.filter(({ originalEntry: [id] }) => Number(id) !== -1)
  if (left.length === all.length || !nodesOf(holder.subgraph).some(node => node.type?.startsWith('CB'))) return
  if (left.length) holder.properties[ASIDE] = left
  else delete holder.properties[ASIDE]
}
