"use strict";
(function () {
  const tip = document.getElementById("tip");
  const svgNamespace = "http" + "://www.w3.org/2000/svg"; // a name, not an address: nothing is fetched

  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - box.width - 6)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? Math.max(6, y - box.height - 12) : y + 18) + "px";
  }
  function hideTip() { tip.hidden = true; }
  addEventListener("scroll", hideTip, { passive: true });

  // Charts: the point nearest to the pointer, and every other series there.
  for (const svg of document.querySelectorAll("svg.chart")) {
    const data = JSON.parse(svg.dataset.lines);
    const cursor = svg.querySelector(".cursor");
    const clear = function () { cursor.replaceChildren(); hideTip(); };
    svg.addEventListener("pointermove", function (event) {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      let best = null;
      for (const line of data.lines) for (const point of line.points)
        if (best === null || Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
      if (best === null) return;
      const rows = [];
      cursor.replaceChildren();
      for (const line of data.lines) {
        let near = null;
        for (const point of line.points)
          if (near === null || Math.abs(point[0] - best[0]) < Math.abs(near[0] - best[0])) near = point;
        if (near === null || Math.abs(near[0] - best[0]) > 20) continue;
        rows.push(line.label + ": " + near[3]);
        const dot = document.createElementNS(svgNamespace, "circle");
        dot.setAttribute("cx", near[0]); dot.setAttribute("cy", near[1]); dot.setAttribute("r", 4.5);
        dot.setAttribute("class", line.role);
        cursor.append(dot);
      }
      showTip(data.x + " " + best[2] + "\n" + rows.join("\n"), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("pointercancel", clear);
  }

  // Tokens: the numbers of the title attribute, at once and on touch screens too.
  const samples = document.querySelector(".samples");
  if (!samples) return;
  for (const token of samples.querySelectorAll(".t")) {
    token.dataset.numbers = token.title;
    token.removeAttribute("title");
  }
  samples.addEventListener("pointerover", function (event) {
    const token = event.target.closest(".t");
    if (!token) { hideTip(); return; }
    showTip("“" + token.textContent.trim() + "”\n" + token.dataset.numbers, event.clientX, event.clientY);
  });
  samples.addEventListener("pointerleave", hideTip);

  // One sample at a time, chosen from a list.
  const items = Array.from(samples.querySelectorAll(".sample"));
  if (items.length < 2) return;
  const stepper = document.createElement("div");
  const list = document.createElement("select");
  stepper.className = "stepper";
  list.setAttribute("aria-label", "Test chunk");
  items.forEach(function (item, i) {
    const option = document.createElement("option");
    option.value = i;
    option.textContent = (i + 1) + ". " + item.querySelector(".name").textContent + "  " + item.querySelector(".gained").textContent;
    list.append(option);
  });
  function show(number) {
    const chosen = (number + items.length) % items.length;
    items.forEach(function (item, i) { item.hidden = i !== chosen; item.open = i === chosen; });
    list.selectedIndex = chosen;
    hideTip();
  }
  function button(text, label, step) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", function () { show(list.selectedIndex + step); });
    return made;
  }
  list.addEventListener("change", function () { show(list.selectedIndex); });
  stepper.append(button("‹", "Previous chunk", -1), list, button("›", "Next chunk", 1));
  samples.before(stepper);
  const linked = items.findIndex(function (item) { return "#" + item.id === location.hash; });
  show(linked < 0 ? 0 : linked);
})();
