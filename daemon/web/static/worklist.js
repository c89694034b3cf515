// Keeps the worklist fresh without losing focus, and says loudly when it could not.
"use strict";
(() => {
  const freshness = document.getElementById("freshness");
  const every = Number(freshness.dataset.every) * 1000;
  let lastSuccess = freshness.textContent;

  function focusKey() {
    const row = document.activeElement?.closest?.("tr[data-uid]");
    if (row) return `tr[data-uid="${CSS.escape(row.dataset.uid)}"] a.open`;
    const link = document.activeElement?.closest?.("#live a[href]");
    return link ? `#live a[href="${CSS.escape(link.getAttribute("href"))}"]` : null;
  }

  // An old list that looks new is dangerous: it is greyed and says from when it is.
  function outdated(why) {
    freshness.textContent = `${why} - list ${lastSuccess}`;
    freshness.classList.add("lost");
    document.body.classList.add("stale");
  }

  let paused = false;

  async function refresh() {
    if (document.hidden) return;
    // Text that somebody marks, to copy it, must not vanish under the hand.
    paused = !getSelection().isCollapsed;
    if (paused) {
      outdated("PAUSED while text is marked");
      return;
    }
    try {
      const answer = await fetch(location.href, { cache: "no-store", redirect: "error" });
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const live = fresh.getElementById("live");
      if (!live) throw new Error("no list");
      const focused = focusKey();
      const opened = Boolean(document.querySelector("#live .attention[open]"));
      const attention = live.querySelector(".attention");
      if (attention) attention.open = opened;
      document.getElementById("live").replaceWith(live);
      document.title = fresh.title;
      lastSuccess = fresh.getElementById("freshness").textContent;
      freshness.textContent = lastSuccess;
      freshness.classList.remove("lost");
      document.body.classList.remove("stale");
      if (focused) document.querySelector(focused)?.focus({ preventScroll: true });
    } catch {
      outdated("NO CONNECTION");
    }
  }

  function move(step) {
    const links = [...document.querySelectorAll("a.open")];
    const at = links.indexOf(document.activeElement);
    const next = links[at < 0 ? (step > 0 ? 0 : links.length - 1) : at + step];
    next?.focus();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const search = document.getElementById("q");
    if (event.target === search) {
      if (event.key === "Escape") search.blur();
      return;
    }
    if (event.key === "/") search.focus();
    else if (event.key === "ArrowDown" || event.key === "j") move(1);
    else if (event.key === "ArrowUp" || event.key === "k") move(-1);
    else return;
    event.preventDefault();
  });

  document.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-uid]");
    if (!row || event.target.closest("a") || !getSelection().isCollapsed) return;
    location.href = row.querySelector("a.open").href;
  });

  setInterval(refresh, every);
  document.addEventListener("visibilitychange", refresh);
  document.addEventListener("selectionchange", () => {
    if (paused && getSelection().isCollapsed) refresh();
  });
})();
