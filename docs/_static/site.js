// What the pages do by themselves: explorers come alive, and the keyboard reaches what the mouse does.

const states = document.querySelectorAll("script.explorer");
if (states.length) {
  const { show } = await import("./explorer.js");
  for (const script of states) {
    const picture = script.previousElementSibling, parent = document.createElement("div");
    const heading = script.closest("section").querySelector("h1, h2, h3, h4, h5");
    script.after(parent);
    await show(JSON.parse(script.textContent), parent, Number(heading.tagName[1]) + 1);
    picture.hidden = true; // it stands where no script runs
  }
}

// What is too wide scrolls sideways inside itself, by arrow keys once it has the focus. So does a formula that is wider than its line.
const wide = document.querySelectorAll("article :is(pre, .table-wrapper, .math)");
new ResizeObserver(() => wide.forEach((element) => {
  const formula = element.matches("span.math") && element.querySelector("mjx-container");
  if (formula) element.classList.toggle("wide", formula.offsetWidth > element.closest("p, li, td, th, summary, section").clientWidth);
  if (element.scrollWidth > element.clientWidth && (!formula || element.matches(".wide"))) element.tabIndex = 0; else element.removeAttribute("tabindex");
})).observe(document.body);

// On a narrow screen Furo opens its side bars by the labels of hidden check boxes, which no key reaches.
for (const [name, drawer] of [["__navigation", ".sidebar-drawer"], ["__toc", ".toc-drawer"]]) {
  const box = document.getElementById(name), bar = document.querySelector(drawer);
  for (const icon of document.querySelectorAll(`label[for=${name}] > .icon`)) {
    Object.assign(icon, { tabIndex: 0, role: "button", ariaLabel: box.ariaLabel });
    icon.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      box.click();
      if (box.checked) [...bar.querySelectorAll("a")].find((link) => link.checkVisibility()).focus();
    });
    bar.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !box.checked) return;
      box.click();
      icon.focus(); // where the label is shown
    });
  }
}
