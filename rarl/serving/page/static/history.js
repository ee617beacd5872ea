// The last questions, in this browser's own storage.
const PLACE = "rarl-history";
const MOST = 30;

export function readHistory() {
  try {
    return JSON.parse(localStorage.getItem(PLACE)) ?? [];
  } catch {
    return [];
  }
}

export function addToHistory(entry) {
  const entries = [entry, ...readHistory()].slice(0, MOST);
  try {
    localStorage.setItem(PLACE, JSON.stringify(entries));
  } catch { /* full, or forbidden: then it lasts as long as the page */ }
  return entries;
}

export function clearHistory() {
  localStorage.removeItem(PLACE);
  return [];
}
