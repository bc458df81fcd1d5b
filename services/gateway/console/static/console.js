// What the pages cannot say in HTML: asking before an act that cannot be undone, and one act for each click.

document.addEventListener("submit", (event) => {
  const form = event.target;
  const question = form.dataset.confirm;
  if (question && !window.confirm(question)) {
    event.preventDefault();
    return;
  }
  if (form.method === "post") {
    for (const button of form.querySelectorAll("button")) setTimeout(() => (button.disabled = true));
  }
});

// Back from the browser's memory, a page may show what is no longer so, and its buttons are spent.
window.addEventListener("pageshow", (event) => event.persisted && location.reload());
