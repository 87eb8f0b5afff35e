// Plotly reads 2-D canvases back, of which browsers warn.
const getContext = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, options) {
  return getContext.call(this, kind, kind == "2d" ? {willReadFrequently: true, ...options} : options);
};

async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent);
  const stream = new Blob([Uint8Array.from(text, c => c.charCodeAt(0))]).stream();
  const plain = stream.pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}

async function drawFigures() {
  const divs = document.querySelectorAll("div.figure");
  if (!divs.length) return;
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await unpacked("plotly"));
  document.head.append(script);
  for (const div of divs) {
    const {data, layout} = JSON.parse(div.nextElementSibling.textContent);
    await Plotly.newPlot(div, data, layout, {displaylogo: false, responsive: true});
  }
}

async function startViewer() {
  const root = document.getElementById("viewer");
  if (!root) return;
  const about = JSON.parse(document.getElementById("about").textContent);
  const bytes = await unpacked("volumes"), n = about.shape, count = n[0] * n[1] * n[2];
  const volume = k => bytes.subarray(k * count, (k + 1) * count);
  const starts = about.maps.map((m, k) =>
    2 + about.maps.slice(0, k).reduce((sum, other) => sum + other.panels.length, 0));
  const rgb = hex => [1, 3, 5].map(k => parseInt(hex.slice(k, k + 2), 16));
  const stops = about.colours.map(rgb), statusColours = about.status_colours.map(rgb);
  const colour = share => {
    const at = Math.min(share, 0.9999) * (stops.length - 1), k = Math.floor(at);
    return stops[k].map((value, c) => value + (at - k) * (stops[k + 1][c] - value));
  };
  // Across, up and through a plane; planes of a single row are left out.
  const every = [["axial", 0, 1, 2], ["coronal", 0, 2, 1], ["sagittal", 1, 2, 0]];
  const thick = every.filter(([, a, b]) => n[a] > 1 && n[b] > 1);
  const planes = thick.length ? thick : every.slice(0, 1);
  const index = (p) => (p[0] * n[1] + p[1]) * n[2] + p[2];
  const inMask = volume(1), at = [0, 0, 0];
  for (const through of [0, 1, 2]) {  // the slice with the most voxels of the mask
    const voxels = new Array(n[through]).fill(0), p = [0, 0, 0];
    for (p[0] = 0; p[0] < n[0]; p[0]++)
      for (p[1] = 0; p[1] < n[1]; p[1]++)
        for (p[2] = 0; p[2] < n[2]; p[2]++) voxels[p[through]] += inMask[index(p)] > 0;
    at[through] = voxels.indexOf(Math.max(...voxels));
  }
  const select = root.querySelector("select"), readout = root.querySelector("output");
  about.maps.forEach((m, k) => select.add(new Option(m.name, k)));
  const bar = root.querySelector("canvas");
  bar.width = 100;
  bar.height = 1;
  for (let x = 0; x < 100; x++) {
    bar.getContext("2d").fillStyle = `rgb(${colour(x / 100)})`;
    bar.getContext("2d").fillRect(x, 0, 1, 1);
  }
  let panels = [];

  function text(map, code) {
    const value = map.least + (code - 1) / 254 * (map.most - map.least);
    return (code == 255 ? "at least " : "") + `${value.toPrecision(3)} ${map.unit}`;
  }

  function voxel(p) {
    return about.axes.map(({axis, flip, start, step}) =>
      start + step * (flip ? n[axis] - 1 - p[axis] : p[axis]));
  }

  function draw() {
    const map = about.maps[select.value], anatomy = volume(0);
    root.querySelector(".scale").textContent =
      `${map.least.toPrecision(3)} to ${map.most.toPrecision(3)} ${map.unit}: ${map.meaning}`;
    for (const {canvas, across, up, through, k} of panels) {
      const context = canvas.getContext("2d"), values = k < 0 ? inMask : volume(k);
      const image = context.createImageData(n[across], n[up]), p = [0, 0, 0];
      p[through] = at[through];
      for (let y = 0; y < n[up]; y++)
        for (let x = 0; x < n[across]; x++) {
          p[across] = x;
          p[up] = n[up] - 1 - y;
          const code = values[index(p)], grey = anatomy[index(p)];
          const shown = !code ? [grey, grey, grey]
            : k < 0 ? statusColours[code] : colour((code - 1) / 254);
          image.data.set([...shown, 255], 4 * (y * n[across] + x));
        }
      context.putImageData(image, 0, 0);
    }
  }

  function build() {
    const map = about.maps[select.value], grid = root.querySelector(".panels");
    grid.replaceChildren();
    panels = [];
    const columns = [["status", -1], ...map.panels.map((name, j) =>
      [name, starts[select.value] + j])];
    grid.style.gridTemplateColumns = `repeat(${columns.length}, 1fr)`;
    for (const [name] of columns) grid.append(Object.assign(
      document.createElement("b"), {textContent: name}));
    for (const [plane, across, up, through] of planes) {
      const label = document.createElement("label"), slider = document.createElement("input");
      Object.assign(slider, {type: "range", min: 0, max: n[through] - 1, value: at[through]});
      slider.oninput = () => { at[through] = +slider.value; draw(); };
      label.append(`${plane} `, ...(n[through] > 1 ? [slider] : []));
      grid.append(label);
      for (const [name, k] of columns) {
        const canvas = document.createElement("canvas");
        Object.assign(canvas, {width: n[across], height: n[up]});
        canvas.style.aspectRatio = n[across] * about.size[across] / (n[up] * about.size[up]);
        const position = event => {
          const box = canvas.getBoundingClientRect(), p = [...at];
          const of = (share, size) => Math.min(Math.max(Math.floor(share * size), 0), size - 1);
          p[across] = of((event.clientX - box.left) / box.width, n[across]);
          p[up] = n[up] - 1 - of((event.clientY - box.top) / box.height, n[up]);
          return p;
        };
        canvas.onmousemove = event => {
          const p = position(event), j = index(p), here = `voxel (${voxel(p)}): `;
          readout.textContent = here + (!inMask[j] ? "outside the mask"
            : about.status_names[inMask[j]] + map.panels.map((panel, m) => {
              const code = volume(starts[select.value] + m)[j];
              return code ? `, ${panel} ${text(map, code)}` : "";
            }).join(""));
        };
        canvas.onclick = event => { at.splice(0, 3, ...position(event)); build(); };
        grid.append(canvas);
        panels.push({canvas, across, up, through, k});
      }
    }
    draw();
  }
  select.onchange = build;
  build();
}

startViewer().then(drawFigures).then(() => { document.body.dataset.ready = "yes"; });
