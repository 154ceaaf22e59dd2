// An explorer of SAME padding along one axis: Keras above, the usual padding of PyTorch below, and what comes of it.
// It mounts on <div id="explorer-padding">. samePadding is the rule of parity.padding; a test compares the two.

/** Return the padding [before, after] of Keras with padding="same", on TensorFlow. */
function samePadding(size, kernel, stride, dilation) {
  const reach = (kernel - 1) * dilation + 1;
  const outputs = Math.ceil(size / stride);
  const total = Math.max((outputs - 1) * stride + reach - size, 0);
  const before = Math.floor(total / 2);
  return [before, total - before];
}

/** Return the padding of the usual port, half of what the kernel reaches over, rounded down, on each side. */
function halfPadding(kernel, dilation) {
  const half = Math.floor(((kernel - 1) * dilation + 1) / 2);
  return [half, half];
}

/** Return where the kernel starts for each output, counted from the first element of the data. */
function starts(size, kernel, stride, dilation, [before, after]) {
  const reach = (kernel - 1) * dilation + 1;
  const count = Math.floor((size + before + after - reach) / stride) + 1;
  return Array.from({ length: Math.max(count, 0) }, (_, index) => index * stride - before);
}

/** Return which elements each output reads; an element of the padding is null. */
function reads(size, kernel, stride, dilation, padding) {
  return starts(size, kernel, stride, dilation, padding).map((start) =>
    Array.from({ length: kernel }, (_, tap) => start + tap * dilation)
      .map((index) => (index >= 0 && index < size ? index : null)));
}

/** Return [kind, sentence] for one setting: "right", "silent" or "loud". */
function paddingVerdict(size, kernel, stride, dilation) {
  const padding = samePadding(size, kernel, stride, dilation);
  const half = halfPadding(kernel, dilation);
  const keras = reads(size, kernel, stride, dilation, padding);
  const port = reads(size, kernel, stride, dilation, half);
  if (keras.length !== port.length) {
    return ["loud", `The shapes differ: Keras makes ${keras.length} outputs, the port ${port.length}.`];
  }
  if (JSON.stringify(keras) === JSON.stringify(port)) return ["right", "Same shape, and the numbers agree."];
  const early = half[0] - padding[0];
  const elements = Math.abs(early) === 1 ? "one element" : `${Math.abs(early)} elements`;
  return ["silent", `Same shape, other numbers: the port reads everything ${elements} too ${early > 0 ? "early" : "late"}.`];
}

window.paddingExplorer = { samePadding, halfPadding, paddingVerdict };

(() => {
  const box = (x, y, width, height, kind, text) =>
    `<rect class="${kind}" x="${x}" y="${y}" width="${width}" height="${height}"/>` +
    `<text x="${x + width / 2}" y="${y + height / 2}">${text}</text>`;

  function drawing(y, title, size, kernel, stride, dilation, padding, kind) {
    const [before, after] = padding;
    let svg = `<text class="explorer-title" x="${-before * 40}" y="${y - 12}">${title}</text>`;
    for (let index = -before; index < size + after; index += 1) {
      const data = index >= 0 && index < size;
      svg += box(index * 40, y, 40, 34, data ? "data" : "zero", data ? `x${index}` : "0");
    }
    starts(size, kernel, stride, dilation, padding).forEach((start, number) => {
      const row = y + 42 + number * 20;
      for (let tap = 0; tap < kernel; tap += 1) {
        svg += `<rect class="${kind}" x="${(start + tap * dilation) * 40 + 2}" y="${row}" width="36" height="14"/>`;
      }
    });
    return svg;
  }

  function draw(values, svg) {
    const [size, kernel, stride, dilation] = values;
    const [kind, sentence] = paddingVerdict(...values);
    const keras = samePadding(...values);
    const half = halfPadding(kernel, dilation);
    const rows = Math.max(starts(size, kernel, stride, dilation, keras).length,
      starts(size, kernel, stride, dilation, half).length);
    const height = 60 + rows * 20;
    const left = -Math.max(keras[0], half[0]) * 40 - 6;
    const width = (size + Math.max(keras[0], half[0]) + Math.max(keras[1], half[1])) * 40 + 12;
    svg.setAttribute("viewBox", `${left} -34 ${Math.max(width, 330)} ${2 * height + 40}`);
    svg.innerHTML = drawing(0, `Keras: padding="same" adds (${keras})`, size, kernel, stride, dilation, keras, "keras") +
      drawing(height + 30, `PyTorch: padding=${half[0]}`, size, kernel, stride, dilation, half,
        kind === "right" ? "right" : "wrong");
    const sign = { right: "✓", silent: "✗ Silent.", loud: "✗ Loud." }[kind];
    return `${sign} ${sentence}`;
  }

  const settings = { size: [6, 1, 14], kernel: [3, 1, 7], stride: [2, 1, 4], dilation: [1, 1, 3] };
  mountExplorer("padding", settings, draw);
})();
