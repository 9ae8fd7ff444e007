"use strict";
// What the scripts of all pages use. Texts of models and datasets become text nodes, never markup.

const byId = (id) => document.getElementById(id);

function make(tag, classes, ...children) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  node.append(...children); // strings become text nodes
  return node;
}
