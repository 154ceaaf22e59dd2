// An explorer of the order in which features are flattened: Keras goes through the channels first, PyTorch last.
// It mounts on <div id="explorer-flatten">. The two functions are compared with NumPy by a test.

/** Return the place of feature (h, w, c) after Keras's Flatten, and after PyTorch's. */
function kerasPlace([height, width, channels], [h, w, c]) { return (h * width + w) * channels + c; }
function torchPlace([height, width, channels], [h, w, c]) { return (c * height + h) * width + w; }

/** Return for each place in Keras's order the place in PyTorch's: what reorders the rows of a Dense kernel. */
function flattenOrder(shape) {
  const [height, width, channels] = shape;
  const order = [];
  for (let h = 0; h < height; h += 1) {
    for (let w = 0; w < width; w += 1) {
      for (let c = 0; c < channels; c += 1) order.push(torchPlace(shape, [h, w, c]));
    }
  }
  return order;
}

/** Return how many features stay where they are. */
function flattenKept(shape) { return flattenOrder(shape).filter((place, index) => place === index).length; }

window.flattenExplorer = { kerasPlace, torchPlace, flattenOrder, flattenKept };

(() => {
  function draw(shape, svg) {
    const [height, width, channels] = shape;
    const count = height * width * channels;
    const columns = Math.min(count, 16);
    const rows = Math.ceil(count / columns);
    const names = { keras: new Array(count), torch: new Array(count) };
    for (let h = 0; h < height; h += 1) {
      for (let w = 0; w < width; w += 1) {
        for (let c = 0; c < channels; c += 1) {
          names.keras[kerasPlace(shape, [h, w, c])] = [h, w, c];
          names.torch[torchPlace(shape, [h, w, c])] = [h, w, c];
        }
      }
    }
    const line = (features, y, title) => {
      let boxes = `<text class="explorer-title" x="0" y="${y - 12}">${title}</text>`;
      features.forEach(([h, w, c], index) => {
        const x = (index % columns) * 44;
        const top = y + Math.floor(index / columns) * 40;
        const same = names.keras[index].join() === names.torch[index].join();
        boxes += `<rect class="channel channel-${c}" x="${x}" y="${top}" width="44" height="34"/>` +
          `<text x="${x + 22}" y="${top + 17}"${same ? ' class="same"' : ""}>${h},${w},${c}</text>`;
      });
      return boxes;
    };
    const height2 = rows * 40 + 46;
    svg.setAttribute("viewBox", `-4 -30 ${Math.max(columns * 44, 330) + 8} ${2 * height2}`);
    svg.innerHTML = line(names.keras, 0, "Keras: h, w, c of each feature, channels last") +
      line(names.torch, height2, "PyTorch: the same features, channels first");
    const kept = flattenKept(shape);
    return kept === count
      ? "✓ Both orders are the same: a test with this shape cannot see the mistake."
      : `✗ Silent. ${kept} of ${count} features stay in place; the Dense kernel meets the others in the wrong rows.`;
  }

  mountExplorer("flatten", { height: [2, 1, 4], width: [2, 1, 4], channels: [3, 1, 4] }, draw);
})();
