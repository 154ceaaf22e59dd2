// Predictions, and the questions of the quiz: choose an option, read why it is right or wrong, then see the output.
// Everything comes from the page: the list under the question, and the fold that says of each option why.
// Without this script the page is as it is: the fold opens by hand, and the outputs are in sight.

document.querySelectorAll("section#predict, section[id^=quiz] > section").forEach((question) => {
  const list = question.querySelector("ol");
  const fold = question.querySelector("details");
  if (!list || !fold) return;

  // What the fold says of each option, by number. Right is the one whose number is bold.
  const said = new Map();
  let right = 0;
  let current = 0;
  for (const paragraph of fold.querySelectorAll("p")) {
    if (paragraph.closest("summary")) continue;
    const bold = paragraph.firstElementChild;
    const isRight = bold?.tagName === "STRONG" && paragraph.textContent.startsWith(bold.textContent)
      && /^\d\.$/.test(bold.textContent);
    const number = paragraph.textContent.match(/^(\d)[.:]\s/);
    if (number) current = Number(number[1]);
    if (isRight) right = current;
    if (!current) continue;
    const copy = paragraph.cloneNode(true);
    if (number) {
      if (isRight) copy.firstElementChild.remove();
      else copy.firstChild.textContent = copy.firstChild.textContent.replace(/^\d:\s/, "");
    }
    said.set(current, [...(said.get(current) ?? []), copy]);
  }
  const items = [...list.children];
  if (!right || items.some((_, index) => !said.has(index + 1))) return;

  // Behind a prediction, the outputs of the next section are out of sight until an option is chosen.
  const covered = question.id === "predict" ? document.querySelectorAll("section#see-it-go-wrong .cell_output") : [];
  const outputs = [...covered];
  const covers = outputs.map((output) => {
    const cover = document.createElement("button");
    cover.type = "button";
    cover.className = "prediction-cover";
    cover.textContent = "Predict first, or show the output";
    cover.addEventListener("click", () => reveal());
    output.hidden = true;
    output.before(cover);
    return cover;
  });

  function reveal() {
    outputs.forEach((output) => { output.hidden = false; });
    covers.forEach((cover) => cover.remove());
  }

  list.classList.add("prediction");
  items.forEach((item, index) => {
    const number = index + 1;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "prediction-option";
    button.setAttribute("aria-expanded", "false");
    button.append(...item.childNodes);
    const why = document.createElement("div");
    why.className = "prediction-why";
    why.setAttribute("role", "status");
    item.append(button, why);
    button.addEventListener("click", () => {
      const isRight = number === right;
      button.setAttribute("aria-expanded", "true");
      button.classList.add(isRight ? "prediction-right" : "prediction-wrong");
      if (!why.hasChildNodes()) {
        const verdict = document.createElement("strong");
        verdict.textContent = isRight ? "✓ Right. " : "✗ No. ";
        const texts = said.get(number).map((paragraph) => paragraph.cloneNode(true));
        texts[0].prepend(verdict);
        why.append(...texts);
      }
      reveal();
    });
  });
});
