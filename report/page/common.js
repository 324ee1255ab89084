// What the scripts of a page share. Values come packed as report/page/slide_layers.py describes.

const NONE = 255
let themed = false

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))
  return new Uint8Array(await new Response(stream).arrayBuffer())
}

// Values of one column of a packed table of n rows.
function column_of({low, high, levels}, unpacked, n, column) {
  const steps = unpacked.subarray(column * n, (column + 1) * n)
  const step = (high[column] - low[column]) / levels
  return Float32Array.from(steps, (s) => (s === NONE ? NaN : low[column] + s * step))
}

// One value of a packed table of n rows.
function value_at({low, high, levels}, unpacked, n, column, row) {
  const step = unpacked[column * n + row]
  return step === NONE ? NaN : low[column] + (step * (high[column] - low[column])) / levels
}

// Maps are drawn, so that the page's style sheet does not reach them.
function follow_theme({plots, bars}) {
  if (themed) return
  themed = true
  if (!window.matchMedia("(prefers-color-scheme: dark)").matches) return
  const [ink, paper, line] = ["#e8e8ea", "#1b1b1e", "#4a4a50"]
  for (const plot of plots) {
    plot.setv({background_fill_color: paper, border_fill_color: paper})
    plot.title.text_color = ink
    for (const axis of [...plot.below, ...plot.left])
      axis.setv({
        axis_label_text_color: ink,
        major_label_text_color: ink,
        axis_line_color: line,
        major_tick_line_color: line,
        minor_tick_line_color: line,
      })
    for (const grid of plot.center) if (grid.type === "Grid" && grid.grid_line_color !== null) grid.grid_line_color = line
    if (plot.outline_line_color !== null) plot.outline_line_color = line
  }
  for (const bar of bars) bar.setv({background_fill_color: paper, major_label_text_color: ink, title_text_color: ink})
}

// Text from files is never read as HTML.
function escaped(text) {
  const span = document.createElement("span")
  span.textContent = text
  return span.innerHTML
}
