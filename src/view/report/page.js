"use strict";
// Without this script every mark still has its title, and the tables say the same.
for (const chart of document.querySelectorAll("svg.chart")) {
  const data = JSON.parse(chart.parentNode.querySelector("script").textContent);
  const output = chart.parentNode.querySelector("output");
  const needle = chart.querySelector(".needle");
  const span = data.until - data.from;
  const utc = (ms) => new Date(ms).toISOString().replace("T", " ").replace(/\.\d+Z/, "Z");
  const at = (clock, ms) => {
    let low = 0, high = clock.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (clock[middle][0] <= ms) low = middle + 1; else high = middle;
    }
    return low ? clock[low - 1][1] : null;
  };
  const tell = (ms, row) => {
    const words = [utc(ms)];
    const line = data.rows[row];
    if (line) {
      words.push("timeline " + line.timeline);
      const from = line.clock.length && line.clock[0][0], to = line.clock.length && line.clock[line.clock.length - 1][0];
      const lsn = ms >= from && ms <= to ? at(line.clock, ms) : null;
      if (lsn) words.push("at or after " + lsn);
      words.push(line.bands.some((band) => band[0] <= ms && ms <= band[1]) ? "can be restored" : "cannot be restored here");
    }
    output.textContent = words.join(" · ");
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    needle.setAttribute("x1", part * 100 + "%");
    needle.setAttribute("x2", part * 100 + "%");
    needle.style.opacity = ".5";
    const mark = event.target.closest("[tabindex]");
    const title = mark && !mark.classList.contains("band") && mark.querySelector("title");
    if (title) output.textContent = title.textContent;
    else tell(data.from + part * span, Math.floor((event.clientY - box.top - data.top) / data.height));
  });
  chart.addEventListener("pointerleave", () => { needle.style.opacity = "0"; });
  chart.addEventListener("focusin", (event) => {
    const title = event.target.querySelector("title");
    if (title) output.textContent = title.textContent;
  });
}
