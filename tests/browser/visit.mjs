// Opens ComfyUI's front end, loads workflows into it and runs some. Reads its orders as JSON from the first argument
// {playwright, browser, url, pictures, workflows: [{name, path, run}]} and prints what it saw as one line of JSON;
// a screenshot of each workflow in each renderer goes to `pictures`.
import { readFile } from 'node:fs/promises'
import { chooseRenderer, RENDERERS, runLoaded, settled, withPage } from '../../devtools/page.mjs'

const orders = JSON.parse(process.argv[2])
const LOOKS = 3 // enough for sizes: nodes grow by what the server answers, which is waited for anyway, and by the next frame
await withPage(orders, visit)

async function visit(page, complaints) {
  const seen = { complaints, nodes: [], workflows: {} }
  seen.nodes = await page.evaluate(() => Object.keys(window.LiteGraph.registered_node_types))
  for (const renderer of RENDERERS) {
    await chooseRenderer(page, renderer)
    for (const { name, path, run } of orders.workflows) {
      const workflow = JSON.parse(await readFile(path, 'utf8'))
      const found = (seen.workflows[name] ??= { overlaps: {} })
      found.prompt ??= await load(page, workflow)
      if (renderer !== 'litegraph') await load(page, workflow)
      else found.end = run ? await runLoaded(page) : null
      found.overlaps[renderer] = await settledOverlaps(page, renderer)
      await page.screenshot({ path: `${orders.pictures}/${name}_${renderer}.png` })
    }
  }
  return seen
}

// The prompt that the front end would send for the workflow.
async function load(page, workflow) {
  return page.evaluate(async workflow => {
    await window.app.loadGraphData(workflow)
    return (await window.app.graphToPrompt()).output
  }, workflow)
}

// Pairs of nodes that cover one another once nothing grows any more.
async function settledOverlaps(page, renderer) {
  await showAll(page)
  const now = await settled(page, () => boxes(page, renderer), undefined, LOOKS)
  return now.flatMap((one, place) => now.slice(0, place).filter(other => meet(one, other)).map(other => [other.name, one.name]))
}

// Nodes 2.0 lays out only what is seen.
async function showAll(page) {
  await page.evaluate(() => {
    const { graph, canvas } = window.app
    const rights = graph._nodes.map(node => node.pos[0] + node.size[0]), bottoms = graph._nodes.map(node => node.pos[1] + node.size[1])
    canvas.ds.scale = Math.min(1, 1200 / Math.max(...rights), 650 / Math.max(...bottoms))
    canvas.ds.offset = [100 / canvas.ds.scale, 180 / canvas.ds.scale]
    canvas.setDirty(true, true)
  })
}

function meet(one, other) {
  const across = Math.min(one.right, other.right) - Math.max(one.left, other.left)
  const down = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top)
  return across > 1 && down > 1
}

// Every node with its title, in units of the graph.
async function boxes(page, renderer) {
  return page.evaluate(renderer => {
    const { graph, canvas } = window.app
    const scale = canvas.ds.scale
    return graph._nodes.map(node => {
      const name = `${node.id} ${node.title}`
      if (renderer === 'litegraph') {
        const [left, top, width, height] = node.boundingRect
        return { name, left, top, right: left + width, bottom: top + height }
      }
      const { left, top, right, bottom } = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect()
      return { name, left: left / scale, top: top / scale, right: right / scale, bottom: bottom / scale }
    })
  }, renderer)
}
