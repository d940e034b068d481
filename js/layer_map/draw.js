// Draws the layer map: layers across in blocks, noise levels down, one panel for each feature, bright = sensitive.
// What is selected keeps its colour inside a bright line, the rest is dimmed. Plain functions of what they are given.

export const SELECTED = '#22d3ee', EXCLUDED = '#ff6b6b'
const BACKGROUND = [19, 21, 28], DIMMED = 0.34
const AXIS = 34, TITLE = 16, HANDS = 9, BLOCKS = 15, GAP = 3, BETWEEN = 4, FONT = '10px sans-serif'

// Where everything goes in a plot of width x height, in CSS pixels.
export function layout(map, width, height) {
  const panels = map.features.length, levels = map.sigmas.length
  const blocks = blocksOf(map.layers)
  const room = Math.max(width - AXIS - GAP * (blocks.length - 1), map.layers.length)
  const edge = column => Math.round((column * room) / map.layers.length)
  const left = [], right = []
  blocks.forEach((block, number) => {
    for (let column = block.first; column <= block.last; column++) {
      left.push(AXIS + GAP * number + edge(column))
      right.push(AXIS + GAP * number + edge(column + 1))
    }
  })
  const each = (height - BLOCKS - BETWEEN * (panels - 1)) / panels
  const row = Math.max((each - TITLE - HANDS) / levels, 1)
  const tops = map.features.map((_, panel) => Math.round(panel * (each + BETWEEN) + TITLE + HANDS))
  return { width, height, blocks, left, right, row, tops, levels, edge: level => Math.round(level * row) }
}

// The cell at a point: {panel, level, layer}, or null beside the cells.
export function cellAt(plan, x, y) {
  const layer = plan.left.findIndex((left, column) => x >= left && x < plan.right[column])
  const panel = plan.tops.findIndex(top => y >= top - HANDS && y < top + plan.edge(plan.levels))
  if (layer < 0 || panel < 0) return null
  const level = Math.floor((y - plan.tops[panel]) / plan.row)
  return { panel, level: Math.min(Math.max(level, 0), plan.levels - 1), layer }
}

// Draws everything. `selection` may be null; `cursor` is a cell or null; `look` has the titles and the text colour.
export function draw(context, plan, map, selection, cursor, look) {
  context.clearRect(0, 0, plan.width, plan.height)
  context.imageSmoothingEnabled = false
  context.font = FONT
  map.features.forEach((feature, panel) => {
    const weights = selection?.weights[feature] ?? null
    drawCells(context, plan, panel, colours(map, panel, weights))
    if (weights) outline(context, plan, panel, weights)
    if (selection) drawHands(context, plan, panel, selection)
    drawLabels(context, plan, panel, map, look)
  })
  drawBlocks(context, plan, look)
  if (cursor) drawCursor(context, plan, cursor, look)
}

function blocksOf(layers) {
  const blocks = []
  layers.forEach((layer, column) => {
    const stretch = stretchOf(layer)
    if (blocks.at(-1)?.stretch === stretch) blocks.at(-1).last = column
    else blocks.push({ stretch, first: column, last: column })
  })
  for (const block of blocks) block.name = titleOf(block, layers)
  return blocks
}

// UNets: the block, o1 of o1.8. Transformers: all layers of a kind; joint blocks and their second attention take turns.
function stretchOf(layer) {
  return layer.includes('.') ? layer.split('.')[0] : layer[0].replace('x', 'j')
}

function titleOf({ stretch, first, last }, layers) {
  if (layers[first].includes('.')) return stretch
  return first === last ? layers[first] : `${layers[first]}-${layers[last].slice(1)}`
}

// The cells of a panel as a picture of one pixel each.
function colours(map, panel, weights) {
  map.rgb ??= map.palette.map(colour => [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16)))
  const levels = map.sigmas.length, layers = map.layers.length
  const picture = new ImageData(layers, levels)
  let at = 0
  for (let level = 0; level < levels; level++) {
    for (let layer = 0; layer < layers; layer++) {
      const colour = map.rgb[map.shades[panel][level][layer]]
      const share = weights ? DIMMED + (1 - DIMMED) * weights[level][layer] : 1
      for (let part = 0; part < 3; part++) {
        picture.data[at++] = BACKGROUND[part] + share * (colour[part] - BACKGROUND[part])
      }
      picture.data[at++] = 255
    }
  }
  return picture
}

const sheet = document.createElement('canvas')

function drawCells(context, plan, panel, picture) {
  sheet.width = picture.width
  sheet.height = picture.height
  sheet.getContext('2d').putImageData(picture, 0, 0)
  const top = plan.tops[panel], height = plan.edge(plan.levels)
  for (const { first, last } of plan.blocks) {
    const left = plan.left[first], width = plan.right[last] - left
    context.drawImage(sheet, first, 0, last - first + 1, picture.height, left, top, width, height)
  }
}

// A line between what takes part and what does not.
function outline(context, plan, panel, weights) {
  const top = plan.tops[panel]
  const open = (level, layer, block) =>
    level >= 0 && level < plan.levels && layer >= block.first && layer <= block.last && weights[level][layer] > 0
  context.beginPath()
  for (const block of plan.blocks) {
    for (let level = 0; level < plan.levels; level++) {
      const above = top + plan.edge(level) + 0.5, below = top + plan.edge(level + 1) - 0.5
      for (let layer = block.first; layer <= block.last; layer++) {
        if (!open(level, layer, block)) continue
        const left = plan.left[layer] + 0.5, right = plan.right[layer] - 0.5
        if (!open(level - 1, layer, block)) line(context, left - 0.5, above, right + 0.5, above)
        if (!open(level + 1, layer, block)) line(context, left - 0.5, below, right + 0.5, below)
        if (!open(level, layer - 1, block)) line(context, left, above - 0.5, left, below + 0.5)
        if (!open(level, layer + 1, block)) line(context, right, above - 0.5, right, below + 0.5)
      }
    }
  }
  context.strokeStyle = SELECTED
  context.lineWidth = 1
  context.stroke()
}

function line(context, x, y, toX, toY) {
  context.moveTo(x, y)
  context.lineTo(toX, toY)
}

// Above a panel: a triangle for a pinned layer, a cross for an excluded one (which wins).
function drawHands(context, plan, panel, selection) {
  const bottom = plan.tops[panel] - 2
  plan.left.forEach((left, layer) => {
    const centre = (left + plan.right[layer]) / 2
    context.beginPath()
    if (selection.excluded[layer]) {
      line(context, centre - 2.5, bottom - 5, centre + 2.5, bottom)
      line(context, centre + 2.5, bottom - 5, centre - 2.5, bottom)
      context.strokeStyle = EXCLUDED
      context.lineWidth = 1.5
      context.stroke()
    } else if (selection.pinned[layer]) {
      context.moveTo(centre - 3, bottom - 5)
      context.lineTo(centre + 3, bottom - 5)
      context.lineTo(centre, bottom)
      context.fillStyle = SELECTED
      context.fill()
    }
  })
}

function drawLabels(context, plan, panel, map, look) {
  const top = plan.tops[panel]
  context.fillStyle = look.ink
  context.textBaseline = 'middle'
  context.textAlign = 'left'
  context.fillText(look.titles[panel], AXIS, top - HANDS - TITLE / 2)
  context.textAlign = 'right'
  const step = Math.max(1, Math.ceil(11 / plan.row))
  for (let level = 0; level < plan.levels; level += step) {
    context.fillText(short(map.sigmas[level]), AXIS - 5, top + (level + 0.5) * plan.row)
  }
}

function drawBlocks(context, plan, look) {
  context.fillStyle = look.ink
  context.textAlign = 'center'
  context.textBaseline = 'middle'
  let free = 0
  for (const { name, first, last } of plan.blocks) {
    const centre = (plan.left[first] + plan.right[last]) / 2, half = context.measureText(name).width / 2
    if (centre - half < free) continue // no room beside the last name
    context.fillText(name, centre, plan.height - BLOCKS / 2)
    free = centre + half + 2
  }
  context.textAlign = 'right'
  context.fillText('σ', AXIS - 5, plan.height - BLOCKS / 2)
}

function drawCursor(context, plan, { panel, level, layer }, look) {
  const left = plan.left[layer], width = plan.right[layer] - left
  context.lineWidth = 1
  context.strokeStyle = '#ffffff'
  for (const top of plan.tops) context.strokeRect(left - 0.5, top - 0.5, width + 1, plan.edge(plan.levels) + 1)
  const above = plan.tops[panel] + plan.edge(level), height = plan.edge(level + 1) - plan.edge(level)
  context.lineWidth = 2
  context.strokeRect(left - 1, above - 1, width + 2, height + 2)
  context.strokeStyle = look.ink
}

export function short(sigma) {
  return sigma >= 10 ? sigma.toFixed(0) : sigma >= 1 ? sigma.toFixed(1) : sigma.toFixed(2)
}
