// What the explorers share: sliders above a drawing, and a verdict below it.

/**
 * Fill <div id="explorer-NAME">, if the page has one, and draw at once and whenever a slider moves.
 *
 * settings: by the name of each slider, its first value, its least and its greatest.
 * draw(values, svg): fills the drawing and returns the verdict.
 */
window.mountExplorer = (name, settings, draw) => {
  const mount = document.getElementById(`explorer-${name}`);
  if (!mount) return;
  mount.innerHTML = `
    <div class="explorer-controls"></div>
    <svg class="explorer-drawing" role="img" aria-labelledby="explorer-${name}-verdict"></svg>
    <p class="explorer-verdict" id="explorer-${name}-verdict" role="status"></p>`;
  const controls = mount.querySelector(".explorer-controls");
  const inputs = Object.entries(settings).map(([setting, [value, min, max]]) => {
    const label = document.createElement("label");
    label.innerHTML = `<span>${setting} <output>${value}</output></span>
      <input type="range" name="${setting}" min="${min}" max="${max}" value="${value}">`;
    controls.append(label);
    return label.querySelector("input");
  });

  function update() {
    inputs.forEach((input) => { input.parentElement.querySelector("output").textContent = input.value; });
    const values = inputs.map((input) => Number(input.value));
    mount.querySelector(".explorer-verdict").textContent = draw(values, mount.querySelector("svg"));
  }

  controls.addEventListener("input", update);
  update();
};
